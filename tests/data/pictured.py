"""Tiny encoded images and tables of them, for tests of tables."""

import io
import json

from PIL import Image


def png(value, size=(5, 4), mode="RGB"):
    """The bytes of a PNG file of one value."""
    file = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(file, "PNG")
    return file.getvalue()


def cells(*values, **options):
    """Images as Hugging Face writes them; an entry that is no number is a cell as it is."""
    pngs = [png(v, **options) if isinstance(v, int) else v for v in values]
    return [{"bytes": v, "path": None} if isinstance(v, bytes) else v for v in pngs]


def described(table, **features):
    """A table with Hugging Face's description of its columns."""
    return table.replace_schema_metadata(
        {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    )
