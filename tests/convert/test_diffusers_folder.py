"""Folders that diffusers writes, opened without it: networks, samplers and what is refused."""

import json
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_diffusers_unet import SHAPE, WIDE, randomized

from jaxgen.convert import diffusers_unet
from jaxgen.convert.pretrained import from_pretrained
from jaxgen.distributions.elementwise import standard_normal
from jaxgen.noise.process import Level

UNET: dict[str, Any] = {
    "attention_head_dim": None,
    "block_out_channels": [128, 128],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "layers_per_block": 1,
    "sample_size": 8,
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
BETAS = {"num_train_timesteps": 12, "beta_start": 0.01, "beta_end": 0.3}
NUM = 2
KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch", reason="needs PyTorch, of the extra parity")
    return pytest.importorskip("diffusers", reason="needs diffusers, of the extra parity")


@pytest.fixture(scope="module")
def unet(peer):
    """A U-Net of random parameters, also of those that start as one or zero."""
    import torch

    torch.manual_seed(0)
    net = peer.UNet2DModel(**UNET).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return net


def noises(num_steps, shape):
    """The start of our sampler and the noise of its steps, as theirs asks for them."""
    key_start, key_steps = jax.random.split(KEY)
    keys = [jax.random.fold_in(key_steps, i) for i in reversed(range(num_steps))]
    return [np.asarray(standard_normal(key, shape)) for key in (key_start, *keys)]


def sampled(peer, pipeline, num_steps, monkeypatch, **options):
    """The samples of a pipeline of theirs with our noise, in [-1, 1]."""
    import torch

    size = pipeline.unet.config.sample_size
    drawn = iter(noises(num_steps, (NUM, size, size, 3)))
    for module in (
        "schedulers.scheduling_ddpm",
        "schedulers.scheduling_ddim",
        "pipelines.ddpm.pipeline_ddpm",
        "pipelines.ddim.pipeline_ddim",
    ):
        monkeypatch.setattr(
            f"diffusers.{module}.randn_tensor",
            lambda *_, **__: torch.tensor(next(drawn)).permute(0, 3, 1, 2),
        )
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(NUM, num_inference_steps=num_steps, output_type="np", **options).images
    return 2 * images - 1


ZERO_SNR = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
LARGE = {"variance_type": "fixed_large", "prediction_type": "sample"}
NOISY = {"clip_sample": False, "prediction_type": "v_prediction"}
CASES = {
    "ddpm": ("DDPM", {"variance_type": "fixed_small"}, 12, 0.0),
    "ddim": ("DDIM", {"beta_schedule": "squaredcos_cap_v2"}, 12, 0.0),
    "few_steps": ("DDPM", LARGE, 5, 0.0),
    "zero_snr": ("DDPM", ZERO_SNR, 4, 0.0),
    "ddim_with_noise": ("DDIM", NOISY, 6, 0.7),
}
QUICK = ("ddpm", "ddim")


@pytest.mark.parametrize(
    ("kind", "options", "num_steps", "eta"),
    [
        pytest.param(*case, id=name, marks=[] if name in QUICK else [pytest.mark.slow])
        for name, case in CASES.items()
    ],
)
def test_a_pipeline_samples_what_theirs_samples(
    peer, unet, tmp_path, monkeypatch, kind, options, num_steps, eta
):
    """Step for step, as each step's noise is the same."""
    scheduler = getattr(peer, f"{kind}Scheduler")(**BETAS, **options)
    pipeline = getattr(peer, f"{kind}Pipeline")(unet=unet, scheduler=scheduler)
    pipeline.save_pretrained(tmp_path)
    asked = {"eta": eta} if eta else {}
    run = from_pretrained(tmp_path, num_steps=num_steps, **asked)
    assert run.config.scheduler.beta_end == 0.3
    expected = sampled(peer, pipeline, num_steps, monkeypatch, **asked)
    sample = jax.jit(run.family.sample, static_argnums=2)
    x = np.asarray(sample(run.variables, KEY, NUM))
    # They cut their images off at the end, and make bytes of these.
    np.testing.assert_allclose(np.clip(x, -1, 1), expected, rtol=0, atol=1e-4)
    assert np.std(x) > 0.01


def test_a_network_alone(peer, unet, tmp_path):
    """With diffusers' default chain, which may be replaced."""
    import torch

    unet.save_pretrained(tmp_path)
    run = from_pretrained(tmp_path, num_steps=2)
    assert run.abilities == (
        "sample",
        "log_prob",
        "encode",
        "decode",
        "draw_latents",
        "interpolate",
    )
    assert run.config.scheduler.num_train_timesteps == 1000
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    t = np.array([3, 700])
    with torch.no_grad():
        eps = unet(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t)).sample
    ones = jnp.ones(2)
    # At alpha = sigma = 1 the data are x minus the noise that the network says.
    denoise = run.family.denoising.denoiser(run.variables, clip=False)
    x0 = denoise(jnp.asarray(x), Level(ones, ones, jnp.asarray(t)), None).x0
    np.testing.assert_allclose(
        x - x0, eps.permute(0, 2, 3, 1).numpy(), rtol=0, atol=1e-4 * float(eps.abs().max())
    )
    assert "steps" not in run._facts()
    assert "UNet2DModel names no data" in run._facts()["data"]
    images = run.sample(16)
    assert images.shape == (16, 8, 8, 3)
    assert images.dtype == np.uint8
    other = from_pretrained(tmp_path, scheduler={"num_train_timesteps": 8, "kind": "DDIMScheduler"})
    assert other.family.denoising.process.num_timesteps == 8
    with pytest.raises(ValueError, match=r"unknown fields \['steps_num'\]"):
        from_pretrained(tmp_path, steps_num=3)


def test_an_autoencoder(peer, tmp_path):
    import torch

    torch.manual_seed(0)
    net = peer.AutoencoderKL(
        block_out_channels=[128, 128],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        scaling_factor=0.5,
        sample_size=8,
    ).eval()
    net.save_pretrained(tmp_path)
    run = from_pretrained(tmp_path)
    assert run.config.scaling_factor == 0.5
    image = np.random.default_rng(0).integers(0, 256, (NUM, 8, 8, 3), np.uint8)
    with torch.no_grad():
        x = torch.tensor(image).permute(0, 3, 1, 2) / 127.5 - 1
        z = net.encode(x).latent_dist.mean
        back = net.decode(z).sample.permute(0, 2, 3, 1).numpy()
    latents = run.encode(image)
    z = z.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(latents, z, rtol=0, atol=1e-4 * np.abs(z).max())
    expected = np.clip(127.5 * (back + 1), 0, 255)
    np.testing.assert_allclose(run.decode(latents), expected, atol=0.6)
    assert from_pretrained(tmp_path, image_size=16).experiment.held_out.spec["image"][0] == (
        16,
        16,
        3,
    )


@pytest.fixture(scope="module")
def transformer(peer, tmp_path_factory):
    """A folder of a DiT."""
    import test_diffusers_dit
    import torch

    config = {k: v for k, v in test_diffusers_dit.CONFIG.items() if not k.startswith("_")}
    net = peer.DiTTransformer2DModel(
        **{**config, "in_channels": 4, "out_channels": 8, "sample_size": 4}
    )
    place = tmp_path_factory.mktemp("transformer")
    test_diffusers_dit.with_copies(net, torch).save_pretrained(place)
    return place


def test_a_transformer_alone_samples_latents(transformer):
    run = from_pretrained(transformer, num_steps=2, guidance_scale=1.5)
    assert run.config.scheduler.variance_type == "learned_range"
    latents = run.sample(8, condition=[1, 3])
    assert latents.shape == (8, 4, 4, 4)
    assert latents.dtype == np.float32
    assert "log_prob" not in run.abilities


def test_a_pipeline_of_two_stages(peer, transformer, tmp_path):
    """DiT's: latents by classes with guidance, decoded."""
    import torch

    torch.manual_seed(0)
    vae = peer.AutoencoderKL(
        block_out_channels=[128, 128],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        scaling_factor=0.5,
    )
    net = peer.DiTTransformer2DModel.from_pretrained(transformer)
    scheduler = peer.DDIMScheduler(**BETAS, clip_sample=False)
    peer.DiTPipeline(net, vae, scheduler).save_pretrained(tmp_path)
    index = tmp_path / "model_index.json"
    names = {"id2label": {str(i): name for i, name in enumerate("abcd")}}
    index.write_text(json.dumps({**json.loads(index.read_text()), **names}))
    run = from_pretrained(tmp_path, num_steps=3, guidance_scale=1.0)
    key_latents, _ = jax.random.split(KEY)
    start = np.asarray(standard_normal(jax.random.split(key_latents)[0], (NUM, 4, 4, 4)))
    x = torch.tensor(start).permute(0, 3, 1, 2)
    label = np.arange(NUM) % 4
    scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in scheduler.timesteps:
            eps = net(x, timestep=t[None].expand(NUM), class_labels=torch.tensor(label)).sample[
                :, :4
            ]
            x = scheduler.step(eps, t, x).prev_sample
        expected = vae.decode(x / 0.5).sample.clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    sample = jax.jit(
        lambda variables, label: run.family.sample(variables, KEY, NUM, condition=label)
    )
    ours = sample(run.variables, jnp.asarray(label))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert run.sample(8, condition="c").shape == (8, 8, 8, 3)
    assert from_pretrained(tmp_path).config.guidance_scale == 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A DDPM pipeline as diffusers writes it, without it."""
    place = tmp_path_factory.mktemp("ddpm")
    contents = {
        "model_index.json": {"_class_name": "DDPMPipeline", "scheduler": [], "unet": []},
        "unet/config.json": {"_class_name": "UNet2DModel", **diffusers_unet.to_config(WIDE, SHAPE)},
        "scheduler/scheduler_config.json": {"_class_name": "DDPMScheduler", **BETAS},
    }
    for name, content in contents.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(json.dumps(content))
    params = jax.tree.map(lambda x: 0.1 * x, randomized(WIDE))
    arrays = diffusers_unet.from_jaxgen(params, WIDE, SHAPE)
    save_file(arrays, place / "unet" / "diffusion_pytorch_model.safetensors")
    return place


def test_a_folder_of_2022(folder, tmp_path):
    """All files are in one, and the weights also as halves."""
    for path in folder.rglob("*.*"):
        shutil.copy(path, tmp_path)
    shutil.copy(
        tmp_path / "diffusion_pytorch_model.safetensors",
        tmp_path / "diffusion_pytorch_model.fp16.safetensors",
    )
    run = from_pretrained(tmp_path, num_steps=2)
    assert run.config.scheduler.beta_end == 0.3
    assert run.name == "diffusers.DDPMPipeline"
    images = run.sample(8)
    assert images.shape == (8, 8, 8, 3)
    assert images.dtype == np.uint8


def test_folders_that_cannot_be_opened(folder, tmp_path):
    """The file, the option and its value are named; nothing is passed over."""
    place = tmp_path / "ddpm"
    shutil.copytree(folder, place)

    def refused(name, error=ValueError, **options):
        other = tmp_path / "other"
        shutil.rmtree(other, ignore_errors=True)
        shutil.copytree(place, other)
        path = other / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **options}))
        with pytest.raises(error) as raised:
            from_pretrained(other)
        return str(raised.value)

    assert "act_fn must be 'silu' for our network, got 'gelu'" in refused(
        "unet/config.json", act_fn="gelu"
    )
    assert "encoder_hid_dim is an option that is not known here" in refused(
        "unet/config.json", encoder_hid_dim=3
    )
    assert "scheduler.lambda_min is an option that is not known here: 1" in refused(
        "scheduler/scheduler_config.json", lambda_min=1
    )
    assert "model_index.vqvae is an option" in refused("model_index.json", vqvae=["a", "b"])
    assert "_class_name must be one of AutoencoderKL" in refused(
        "model_index.json", _class_name="StableDiffusionPipeline"
    )
    index = place / "model_index.json"
    content = index.read_text()
    index.write_text("{}")
    with pytest.raises(ValueError, match="_class_name must be one of .*, got ''"):
        from_pretrained(place)
    index.write_text(content)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(
        FileNotFoundError, match=r"has 0, and diffusion_pytorch_model\.bin is a pic"
    ):
        from_pretrained(place)
    (place / "unet" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no config\.json in"):
        from_pretrained(place)
    (place / "scheduler" / "scheduler_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"scheduler_config\.json cannot be read as JSON"):
        from_pretrained(place)
