"""Folders of images: pixels, layouts, ways to store an image, and what is refused."""

import re
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from train_flows.data import image_folders, load_density_data, load_labelled_data


def by_pixels(data, *parts):
    """Pairs of an image and its class, in any order."""
    splits = [getattr(data, part) for part in parts]
    return {(x.numpy().tobytes(), int(y)) for split in splits for x, y in zip(split.x, split.y, strict=True)}


def picture(path, value, size=(6, 4), mode="RGB"):
    """Write a picture whose pixels all differ, to notice exchanged rows, columns or channels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * len(mode)).reshape(size[1], size[0], len(mode)) + value
    pixels = pixels.astype(np.uint8).squeeze()
    Image.fromarray(pixels).save(path, quality=95)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def folder_of(root, classes=("cat", "dog"), n=10, **kwargs):
    return {
        (picture(root / name / f"{i}.png", 11 * k + i, **kwargs).tobytes(), k)
        for k, name in enumerate(classes)
        for i in range(n)
    }


def labelled(folder, **kwargs):
    return load_labelled_data(str(folder), **kwargs)


class TestFolders:
    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_pixel_by_pixel(self, tmp_path, monkeypatch, mode):
        pixels = folder_of(tmp_path / "pets", mode=mode)
        monkeypatch.chdir(tmp_path / "pets")
        data = labelled(".")
        assert (data.name, data.levels, data.classes, data.notes) == ("pets", 256, ("cat", "dog"), ())
        assert data.shape == (len(mode), 4, 6)
        assert [len(part) for part in (data.train, data.validation, data.test)] == [16, 2, 2]
        assert by_pixels(data, "train", "validation", "test") == pixels
        whole = labelled(".", split=False)
        assert (len(whole.train), by_pixels(whole, "test")) == (0, pixels)

    @pytest.mark.parametrize("name", ["test", "val", "validation", "Valid"])
    def test_with_a_test_part(self, tmp_path, name):
        pixels = folder_of(tmp_path / "train", ("cat", "dog", "eel"))
        folder_of(tmp_path / name, ("cat", "eel"), n=2)
        data = labelled(tmp_path)
        assert (len(data.validation), data.classes) == (3, ("cat", "dog", "eel"))
        assert data.notes[-1] == "no test sample of class dog"
        assert by_pixels(data, "train", "validation") == pixels
        assert data.test.y.tolist() == [0, 0, 2, 2]
        assert labelled(tmp_path, split=False).test.y.tolist() == [0, 0, 2, 2]

    def test_test_before_val(self, tmp_path):
        for part, n in (("train", 10), ("val", 2), ("test", 1)):
            folder_of(tmp_path / part, n=n)
        data = labelled(tmp_path)
        assert (len(data.train) + len(data.validation), len(data.test)) == (20, 2)
        assert re.search("val is not used", data.notes[0])
        assert len(labelled(tmp_path / "train").test) == 2

    def test_grey_among_coloured(self, tmp_path):
        coloured = folder_of(tmp_path, ("cat",))
        grey = picture(tmp_path / "dog" / "0.png", 0, mode="L")
        data = labelled(tmp_path, split=False)
        assert by_pixels(data, "test") == coloured | {(np.stack([grey] * 3).tobytes(), 1)}
        refused("dog/0.png is grey, .*cat/0.png in colour", load_density_data, tmp_path)

    def test_resized(self, tmp_path):
        flat = {"a": ((40, 10), 10), "b": ((8, 32), 200)}
        for name, ((width, height), value) in flat.items():
            (tmp_path / name).mkdir()
            array = np.full((height, width), 255, np.uint8)
            y, x = (5 * (length > 10) for length in array.shape)
            array[y : height - y, x : width - x] = value  # squeezing would mix in the ends, cutting leaves them out
            Image.fromarray(array).save(tmp_path / name / "0.png")
        x = labelled(tmp_path, image_size=4, split=False).test.x
        np.testing.assert_array_equal(x, np.stack([np.full((1, 4, 4), value) for _, value in flat.values()]))

    def test_classes_deeper_hidden_and_in_order(self, tmp_path):
        folder_of(tmp_path, ("b", "10", "9", "a", "-1"))
        picture(tmp_path / "a" / "images" / "0.JPEG", 7)
        picture(tmp_path / ".cache" / "0.png", 0)
        picture(tmp_path / "b" / ".thumbnails" / "0.png", 0)
        (tmp_path / "b" / ".hidden.png").write_text("hidden")
        (tmp_path / "README.txt").write_text("next to the classes")
        data = labelled(tmp_path, split=False)
        assert data.classes == ("-1", "9", "10", "a", "b")
        assert torch.bincount(data.test.y).tolist() == [10, 10, 10, 11, 10]

    @pytest.mark.parametrize("layout", ["", "train", "train/all"])
    def test_without_classes(self, tmp_path, layout):
        for i in range(30):
            picture(tmp_path / layout / f"{i}.png", i)
        data = load_density_data(str(tmp_path))
        assert [len(part) for part in (data.train, data.validation, data.test)] == [24, 3, 3]
        refused("--conditional is for images in classes", load_density_data, tmp_path, conditional=True)
        refused("at least 2 classes are needed", load_labelled_data, tmp_path)

    @pytest.mark.parametrize(
        ("spoil", "message"),
        [
            (
                lambda f: picture(f / "dog" / "1.png", 0, (4, 6)),
                "cat/0.png is 6x4 but .*dog/1.png is 4x6.*--image-size",
            ),
            (lambda f: (f / "dog" / "1.png").write_bytes(b""), "1.png cannot be used as an image .* restore it"),
            (lambda f: (f / "dog" / "1.png").write_bytes((f / "dog" / "2.png").read_bytes()[:-30]), "1.png cannot be"),
            (lambda f: (f / "dog" / "x.png").symlink_to(f / "y.png"), "x.png cannot be used as an image"),
            (lambda f: Image.fromarray(np.zeros((4, 6), np.uint16)).save(f / "dog" / "1.png"), "more than 8 bits"),
        ],
    )
    def test_bad_files(self, tmp_path, spoil, message):
        folder_of(tmp_path)
        spoil(tmp_path)
        refused(message, labelled, tmp_path)

    @pytest.mark.parametrize(
        ("layout", "message"),
        [
            ((), "holds 0 folders of images: at least 2 classes are needed; put the images into FOLDER/CLASS/"),
            (("cat",), "holds 1 folders of images"),
            (("test/a", "test/b", "val/a", "val/b"), "holds test but no folder train"),
            (("train/a", "train/b", "more/a", "more/b"), "holds train and more, which is not a part to test on"),
            (("train/a", "train/b", "test/a", "test/c"), "test holds the class c, which .*train lacks"),
        ],
    )
    def test_bad_layouts(self, tmp_path, layout, message):
        for name in layout:
            picture(tmp_path / name / "0.png", 0)
        refused(message, labelled, tmp_path)

    def test_empty_and_few(self, tmp_path):
        for name in ("bus", "train"):  # a class of railways
            (tmp_path / name).mkdir()
        refused("holds no images", labelled, tmp_path)
        folder_of(tmp_path, ("bus", "train"), n=9)
        refused("has 18 images to train on: at least 20", labelled, tmp_path)
        assert labelled(tmp_path, split=False).classes == ("bus", "train")


RGB = np.random.default_rng(0).integers(256, size=(4, 6, 3)).astype(np.uint8)
GREY = RGB[:, :, 0]
ALPHA = np.where(np.arange(24).reshape(4, 6) % 2, 255, 51).astype(np.uint8)  # every other pixel is a fifth opaque
ON_WHITE = np.where(ALPHA[..., None] == 255, RGB, np.round(0.2 * RGB + 0.8 * 255)).astype(np.uint8)


def png_of_16_bits(channels):
    """The bytes of a PNG of 16 bits a channel, which Pillow cannot write: 2 of grey and alpha, 3 of colours."""

    def chunk(name, content):
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 6, 4, 16, {2: 4, 3: 2}[channels], 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(12 * channels)) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def turned(orientation, **options):
    """Save an image whose EXIF orientation says how a viewer turns it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return lambda path: Image.fromarray(RGB).save(path, exif=exif, **options)


def with_alpha(pixels):
    return Image.fromarray(np.dstack([pixels, ALPHA]))


def palette():
    """Pixels 0 to 5 in each row of colours, of which the first is transparent."""
    image = Image.fromarray(np.tile(np.arange(6, dtype=np.uint8), (4, 1)), "P")
    image.putpalette(RGB[0].ravel().tolist())
    return image


def on_white():
    return np.tile(np.vstack([[[255, 255, 255]], RGB[0, 1:]]), (4, 1, 1))


def frames(path, **options):
    first, second = Image.fromarray(RGB), Image.fromarray(255 - RGB)
    first.save(path, save_all=True, append_images=[second], **options)


class TestStoredIn:
    """Ways to store an image: the pixels a viewer shows, and the note."""

    @pytest.mark.parametrize(
        ("name", "save", "pixels", "note"),
        [
            ("plain.png", lambda path: Image.fromarray(RGB).save(path), RGB, ""),
            ("CAPITALS.PNG", lambda path: Image.fromarray(RGB).save(path, format="PNG"), RGB, ""),
            ("one.webp", lambda path: Image.fromarray(RGB).save(path, lossless=True), RGB, ""),
            ("bilevel.png", lambda path: Image.fromarray(GREY > 99).save(path), 255 * (GREY > 99), ""),
            ("cmyk.tif", lambda path: Image.fromarray(RGB).convert("CMYK").save(path), RGB, ""),
            ("upright.png", turned(1), RGB, ""),
            ("sideways.png", turned(6), np.rot90(RGB, -1), ""),
            ("sideways.webp", turned(8, lossless=True), np.rot90(RGB), ""),
            ("sideways.tif", turned(6), np.rot90(RGB, -1), ""),
            ("mirrored.png", turned(2), RGB[:, ::-1], ""),
            ("alpha.png", lambda path: with_alpha(RGB).save(path), ON_WHITE, "transparent in places, .* white"),
            ("opaque.png", lambda path: Image.fromarray(RGB).convert("RGBA").save(path), RGB, ""),
            ("grey-alpha.png", lambda path: with_alpha(GREY).save(path), ON_WHITE[..., 0], "transparent"),
            ("one.gif", lambda path: palette().save(path, transparency=0), on_white(), "transparent"),
            ("palette.png", lambda path: palette().save(path, transparency=0), on_white(), "transparent"),
            ("levels.png", lambda path: palette().save(path, transparency=bytes([0])), on_white(), "transparent"),
            ("key.png", lambda path: Image.fromarray(RGB).save(path, transparency=(1, 2, 3)), RGB, ""),
            ("grey.png", lambda path: Image.fromarray(GREY).convert("RGB").save(path), GREY, "they have one channel"),
            ("grey.gif", lambda path: Image.fromarray(GREY).convert("P").save(path), GREY, "they have one channel"),
            ("moving.gif", frames, RGB, "several frames, of which the first is used .*moving.gif"),
            ("pages.tiff", frames, RGB, "several frames, of which the first is used"),
            ("moving.webp", lambda path: frames(path, lossless=True), RGB, "several frames"),
        ],
    )
    @pytest.mark.filterwarnings("error")
    def test_is_read_as_a_viewer_shows_it(self, tmp_path, name, save, pixels, note):
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / ".DS_Store").write_bytes(b"hidden")
        save(tmp_path / "a" / name)
        (images, _, _), notes = image_folders.read(tmp_path / "a", None, needs_classes=False)
        shown = pixels if pixels.ndim == 3 else pixels[:, :, None]
        np.testing.assert_allclose(images.x[0].permute(1, 2, 0), shown, atol=1 if "alpha" in name else 0)
        assert len(notes) == bool(note)
        assert re.search(note, "".join(notes))

    @pytest.mark.parametrize(
        ("name", "save"),
        [
            ("grey.png", lambda path: Image.fromarray(GREY.astype(np.uint16)).save(path)),
            ("whole.tif", lambda path: Image.fromarray(GREY.astype(np.int32)).save(path)),
            ("real.tif", lambda path: Image.fromarray(GREY.astype(np.float32)).save(path)),
            ("colours.png", lambda path: path.write_bytes(png_of_16_bits(3))),
            ("alpha.png", lambda path: path.write_bytes(png_of_16_bits(2))),
            ("colours.ppm", lambda path: path.write_bytes(b"P6 6 4 65535\n" + bytes(144))),
            ("foreign.png", lambda path: path.write_text("not an image")),
            ("truncated.gif", lambda path: path.write_bytes(b"GIF89a")),
        ],
    )
    def test_is_refused(self, tmp_path, name, save):
        save(tmp_path / name)
        message = "truncated|identify" if name in ("foreign.png", "truncated.gif") else "more than 8 bits"
        refused(f"{name} cannot be used as an image .*({message}).* convert", load_density_data, tmp_path)

    def test_sizes_are_those_of_turned_images(self, tmp_path):
        picture(tmp_path / "0.png", 0, (4, 6))
        turned(6)(tmp_path / "1.png")
        assert load_density_data(str(tmp_path), split=False).shape == (3, 6, 4)
        turned(1)(tmp_path / "1.png")
        refused("0.png is 4x6 but .*1.png is 6x4 pixels", load_density_data, tmp_path)

    def test_damaged_exif_is_ignored(self, tmp_path, recwarn):
        Image.fromarray(GREY).save(tmp_path / "0.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\1\3\0")
        assert image_folders.read(tmp_path, None, needs_classes=False)[0][0].x.shape == (1, 1, 4, 6)
        assert not recwarn.list

    def test_grey_images_in_any_mode(self, tmp_path):
        for i, mode in enumerate(("L", "RGB", "P", "LA", "RGBA", "CMYK")):
            image = Image.fromarray(GREY).convert("RGB" if mode == "CMYK" else mode).convert(mode)
            image.save(tmp_path / f"{i}.{'tif' if mode == 'CMYK' else 'png'}")
        data = load_density_data(str(tmp_path), split=False)
        assert data.shape == (1, 4, 6)
        assert data.notes == ("the images are grey, although some are stored in colour: they have one channel",)
        coloured = {"shape": [3, 4, 6], "levels": 256, "columns": ["red_0_0"], "classes": [], "context": []}
        assert torch.equal(data.match(coloured, "run").test.x, data.test.x.repeat(1, 3, 1, 1))

    def test_grey_photos_among_coloured_ones(self, tmp_path):
        for i in range(3):
            Image.fromarray(RGB).save(tmp_path / f"{i}.png")
        Image.fromarray(GREY).convert("RGB").save(tmp_path / "3.png")
        data = load_density_data(str(tmp_path), split=False)
        assert data.shape == (3, 4, 6)
        assert re.match("1 of 4 images are grey among coloured ones, so the likelihood can grow", data.notes[0])
