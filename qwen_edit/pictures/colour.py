"""Any picture → sRGB of 8 bits a channel, opaque."""

from io import BytesIO
from typing import cast

from PIL import Image, ImageCms

_FULL_SCALES = {"F": (1.0, 255.0, 65535.0)}
_SIXTEEN_BITS = (65535.0,)


def to_srgb(picture: Image.Image) -> Image.Image:
    """A new picture of mode RGB: alpha over white, embedded profile honoured, deep greys scaled, nothing else attached.

    Greys of 16 bits and more, and floating-point ones, are scaled so that the smallest usual full scale that holds the
    brightest pixel becomes white: 65535 for integers; 1, 255 or 65535 for floats; else the brightest pixel itself.

    Args:
        picture: loaded, of any mode that Pillow converts.

    Raises:
        ValueError: the mode has no conversion.
    """
    profile = picture.info.get("icc_profile")
    opaque = _over_white(_eight_bits(picture))
    managed = _managed(opaque, profile) if isinstance(profile, bytes) else None
    result = managed or opaque.convert("RGB")
    result.info.clear()
    return result


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode not in ("I", "F") and not picture.mode.startswith("I;16"):
        return picture
    # I;16 converts to I alone, and only F is scaled without clipping on the way.
    values = picture.convert("I").convert("F") if picture.mode != "F" else picture
    _, brightest = cast(tuple[float, float], values.getextrema())
    full = next((scale for scale in _FULL_SCALES.get(picture.mode, _SIXTEEN_BITS) if brightest <= scale), brightest)
    grey = values.point(lambda value: value * (255 / full) + 0.5).convert("L")
    # A transparent grey of 16 bits has no counterpart among the scaled ones.
    grey.info.pop("transparency", None)
    return grey


def _over_white(picture: Image.Image) -> Image.Image:
    """Mode L, RGB or CMYK."""
    if picture.mode in ("La", "LA"):
        return _blended(picture.convert("LA"), "L")
    if picture.has_transparency_data:
        return _blended(picture.convert("RGBA"), "RGB")
    return picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")


def _blended(picture: Image.Image, mode: str) -> Image.Image:
    white = Image.new(mode, picture.size, "white")
    white.paste(picture.convert(mode), mask=picture.getchannel("A"))
    return white


def _managed(picture: Image.Image, profile: bytes) -> Image.Image | None:
    """The picture in sRGB; None where it is already, or where its profile is broken or for other channels."""
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        # Converting sRGB to itself changes nothing and costs 35 ms a megapixel.
        if "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
