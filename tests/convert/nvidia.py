"""Pickles of the structure of NVIDIA's: of classes that carry source code.

`pickled` needs PyTorch; what it makes is read by anyone.
"""

import pickle
import sys
import types

SOURCE = "raise RuntimeError('the source code of a pickle was run')"


def _reconstruct_persistent_obj(meta):
    raise RuntimeError("a pickle was run")


def pickled(monkeypatch, build):
    """The bytes of `build(persistent, EasyDict)`, made while NVIDIA's modules seem to be there.

    Args:
        monkeypatch: The fixture, which takes the modules away again.
        build: Function of `persistent(class_name, options, parts=, parameters=, buffers=)`, which
            makes an object that pickles as theirs do, and of their dictionary.
    """
    import torch

    class EasyDict(dict):
        pass

    class Persistent(torch.nn.Module):
        def __reduce__(self):
            meta = {
                "type": "class",
                "version": 6,
                "module_src": SOURCE,
                "class_name": self.of,
                "state": self.__dict__,
            }
            return _reconstruct_persistent_obj, (meta,), None

    def persistent(class_name, options, *, parts=(), parameters=(), buffers=()):
        module = Persistent()
        module.of, module._init_args, module._init_kwargs = class_name, (), EasyDict(options)
        for name, part in dict(parts).items():
            module.add_module(name, part)
        for name, array in dict(parameters).items():
            module.register_parameter(name, torch.nn.Parameter(torch.tensor(array)))
        for name, array in dict(buffers).items():
            module.register_buffer(name, None if array is None else torch.tensor(array))
        return module

    module = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util = types.ModuleType("dnnlib.util")
    util.EasyDict = EasyDict
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    monkeypatch.setattr(_reconstruct_persistent_obj, "__module__", module.__name__)
    with monkeypatch.context() as patch:
        for each in (module, util):
            patch.setitem(sys.modules, each.__name__.split(".")[0], types.ModuleType("theirs"))
            patch.setitem(sys.modules, each.__name__, each)
        return pickle.dumps(build(persistent, EasyDict))


def tree_of(persistent, class_name, options, arrays, buffers=()):
    """A network of arrays by dotted names; its parts are persistent too, but for dictionaries."""
    import torch

    def part(name, inside, given):
        own = {key: array for key, array in inside.items() if "." not in key}
        kept = {key: array for key, array in given.items() if "." not in key}
        tops = dict.fromkeys(key.split(".")[0] for key in (*inside, *given) if "." in key)
        parts = {
            top: part(
                top,
                *(
                    {k.removeprefix(f"{top}."): a for k, a in of.items() if k.startswith(f"{top}.")}
                    for of in (inside, given)
                ),
            )
            for top in tops
        }
        if name in ("enc", "dec"):
            return torch.nn.ModuleDict(parts)
        kind, chosen = (class_name, options) if name is None else ("Layer", {})
        return persistent(kind, chosen, parts=parts, parameters=own, buffers=kept)

    return part(None, arrays, dict(buffers))
