"""Files with more bits, or more channels, than libraries hand out by themselves."""

import math
import struct
import wave
import zlib

import av
import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from dit_cachegraph.metrics import measure
from dit_cachegraph.metrics.media import Item


def picture(seed, channels=3, dtype=np.uint8):
    shape = (32, 48, channels) if channels > 1 else (32, 48)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype)


def write_png16(path, pixels):
    """By the format's definition: neither of the libraries that are tested writes it."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def write_clip(path, arrays, array_format, codec="ffv1", pixel_format=None, container_format=None):
    with av.open(str(path), "w", format=container_format) as container:
        stream = container.add_stream(codec, rate=8)
        stream.pix_fmt = pixel_format or array_format
        frames = [av.VideoFrame.from_ndarray(array, format=array_format) for array in arrays]
        stream.width, stream.height = frames[0].width, frames[0].height
        for frame in (*frames, None):
            container.mux(stream.encode(frame))
    return path


def only_frame(path):
    (frame,) = Item(path).frames()
    return frame


def test_colours_of_16_bits_are_read_whole(tmp_path):
    high = picture(0, dtype=np.uint16) // 2
    paths = [write_png16(tmp_path / f"{d}%03d.png", high + np.uint16(d)) for d in (0, 200)]
    assert only_frame(paths[1]).dtype == np.uint16
    np.testing.assert_array_equal(only_frame(paths[1]), high + 200)
    (score,) = measure("psnr", paths[0], paths[1:])
    assert score.value == pytest.approx(20 * math.log10(65535 / 200))


def test_gray_of_16_bits_goes_on(tmp_path):
    gray = picture(0, channels=1, dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        iio.imwrite(tmp_path / name, gray)
        np.testing.assert_array_equal(only_frame(tmp_path / name), gray[..., None])


def test_16_bits_against_8_are_refused(tmp_path, refused):
    high = write_png16(tmp_path / "high.png", picture(0).astype(np.uint16) * 257)
    iio.imwrite(tmp_path / "low.png", picture(0))
    sentence = refused("psnr", high, tmp_path / "low.png")
    assert "3 channels of uint16" in sentence and "3 channels of uint8" in sentence


def test_colours_of_16_bits_in_another_format_are_refused(tmp_path, refused):
    path = tmp_path / "deep.tif"
    iio.imwrite(path, picture(0, dtype=np.uint16), plugin="tifffile", photometric="rgb")
    assert "deep.tif holds colours of more than 8 bits" in refused("psnr", path, path)
    iio.imwrite(path, picture(0), plugin="tifffile", photometric="rgb")
    np.testing.assert_array_equal(only_frame(path), picture(0))


@pytest.mark.parametrize("ending", ["tif", "png"])
def test_colours_of_16_bits_among_several_pictures_are_refused(ending, tmp_path, refused):
    path = tmp_path / f"several.{ending}"
    if ending == "tif":
        with iio.imopen(path, "w", plugin="tifffile") as file:
            file.write(picture(0), photometric="rgb")
            file.write(picture(1, dtype=np.uint16), photometric="rgb")
    else:
        pictures = [picture(seed, dtype=np.uint16) for seed in (0, 1)]
        write_clip(path, pictures, "rgb48be", codec="apng", container_format="apng")
    assert "read from a PNG of one picture alone" in refused("psnr", path, path)


def test_gray_of_12_bits_is_refused(tmp_path, refused):
    path = tmp_path / "twelve.tif"
    iio.imwrite(path, picture(0, channels=1, dtype=np.uint16))
    tag = [struct.pack("<HHIHH", 258, 3, 1, bits, 0) for bits in (16, 12)]
    path.write_bytes(path.read_bytes().replace(*tag))
    assert "twelve.tif holds 12 bits a value" in refused("psnr", path, path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_is_refused(mode, tmp_path, refused):
    path = tmp_path / "clear.png"
    transparent = {"P": {"transparency": 0}, "RGB": {"transparency": (1, 2, 3)}}
    image = Image.fromarray(picture(0)).convert(mode)
    image.save(path, **transparent.get(mode, {}))
    assert "clear.png has an alpha channel or a transparent" in refused("psnr", path, path)


def test_a_palette_alone_is_read_as_its_colours(tmp_path):
    image = Image.fromarray(picture(0)).quantize(16)
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(
        only_frame(tmp_path / "palette.png"), np.asarray(image.convert("RGB"))
    )


def test_other_colours_than_rgb_are_refused(tmp_path, refused):
    path = tmp_path / "print.jpg"
    Image.fromarray(picture(0)).convert("CMYK").save(path)
    assert "print.jpg holds colours as CMYK" in refused("psnr", path, path)


def test_a_format_of_unknown_bits_is_not_read_by_another_ending(tmp_path, refused):
    path = tmp_path / "map.png"
    path.write_bytes(b"P6 2 1 65535 " + bytes(12))
    assert "map.png cannot be read" in refused("psnr", path, path)


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "gbrp10le", "gray16le"])
def test_clips_of_more_than_8_bits_are_refused(pixel_format, tmp_path, refused):
    shape = {"yuv420p10le": (48, 48), "gbrp10le": (32, 48, 3), "gray16le": (32, 48)}[pixel_format]
    pixels = np.full(shape, 300, np.uint16)
    paths = [
        write_clip(tmp_path / f"{d}.mkv", [pixels + np.uint16(d)], pixel_format) for d in (0, 1)
    ]
    num_bits = 16 if pixel_format == "gray16le" else 10
    assert f"0.mkv holds {num_bits} bits a value ({pixel_format})" in refused("psnr", *paths)


def test_lossless_clips_of_8_bits_are_read_as_they_were_written(tmp_path):
    frames = [picture(0), picture(1)]
    path = write_clip(tmp_path / "a.mkv", frames, "rgb24", pixel_format="bgr0")
    np.testing.assert_array_equal(list(Item(path).frames()), frames)


def test_transparent_clips_are_refused_and_opaque_ones_read(tmp_path, refused):
    pixels = picture(0, channels=4)
    pixels[..., 3] = 255
    paths = [tmp_path / "opaque.mkv", tmp_path / "clear.mkv"]
    write_clip(paths[0], [pixels], "rgba", pixel_format="bgra")
    np.testing.assert_array_equal(only_frame(paths[0]), pixels[..., :3])
    pixels[5, 7, 3] = 254
    write_clip(paths[1], [pixels], "rgba", pixel_format="bgra")
    assert "clear.mkv has transparent pixels" in refused("psnr", *paths)


def test_a_gif_is_read_as_its_colours(tmp_path):
    images = [Image.fromarray(picture(seed)).quantize(16) for seed in (0, 1)]
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    expected = [np.asarray(image.convert("RGB")) for image in images]
    np.testing.assert_array_equal(list(Item(tmp_path / "a.gif").frames()), expected)


def test_a_clip_without_pictures_is_refused(tmp_path, refused):
    path = tmp_path / "sound.mkv"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    assert "sound.mkv has no frame" in refused("psnr", path, path)
