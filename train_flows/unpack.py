"""``train-flows unpack ARCHIVE``: unpack images, safely, where the other programs look for them."""

from __future__ import annotations

import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import tyro

from anode import InputError

SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".zip")
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, RuntimeError)
UNSAFE = getattr(tarfile, "FilterError", ())  # nothing in a Python without filters, where tar is refused
SHOWN = 8  # entries named in what is printed


@dataclass(frozen=True)
class Settings:
    """Unpack an archive of images; nothing that exists is overwritten."""

    archive: tyro.conf.Positional[Path]  # .tar, .tar.gz, .tgz, .tar.xz or .zip
    folder: tyro.conf.Positional[Path] = Path("data")  # where to


def main(args: list[str]) -> None:
    """Run the command line ``train-flows unpack``."""
    settings = tyro.cli(Settings, args=args, prog="train-flows unpack")
    entries, files = unpack(settings.archive, settings.folder)
    shown = ", ".join([*map(str, entries[:SHOWN]), *["..."] * (len(entries) > SHOWN)])
    print(f"{files:,} files of {settings.archive} unpacked: {shown}")


def unpack(archive: Path, folder: Path) -> tuple[list[Path], int]:
    """Unpack an archive into a folder, all of it or nothing.

    Args:
        archive: a file ending in one of ``SUFFIXES``.
        folder: where to; made where it is missing.

    Returns:
        The files and folders made at its top, and how many files the archive holds.

    Raises:
        InputError: when the archive is missing, of another format, damaged or empty, when a member would land outside
            the folder, or something by the name of an entry exists there.
    """
    _check(archive, folder)
    try:
        with _opened(archive) as content:
            names, files = _members(content)
            entries = [folder / top for top in _tops(archive, names)]
            _check_absent(archive, entries)
            folder.mkdir(parents=True, exist_ok=True)
            # an archive that fails half-way leaves nothing, for entries move out of here last
            with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=folder) as temporary:
                if isinstance(content, tarfile.TarFile):
                    content.extractall(temporary, filter="data")
                else:
                    content.extractall(temporary)
                for entry in entries:
                    (Path(temporary) / entry.name).rename(entry)
    except UNSAFE as error:
        raise InputError(f"{archive} is not safe to unpack ({error}): fetch it from a source you trust") from error
    except DAMAGE as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno is not None:  # of the system, not of a decompressor
            raise
        raise _damaged(archive, error) from error
    return entries, files


def _check(archive: Path, folder: Path) -> None:
    if not archive.name.lower().endswith(SUFFIXES):
        raise InputError(f"{archive} is no archive that can be unpacked: pass one ending in {', '.join(SUFFIXES)}")
    if not (archive.name.lower().endswith(".zip") or hasattr(tarfile, "data_filter")):
        raise InputError(f"{archive} needs Python 3.11.4 to be unpacked safely: take a later one, or pass a .zip")
    if not archive.is_file():
        raise InputError(f"{archive} does not exist: pass the path of an archive")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: pass the name of a folder to unpack into")


def _opened(archive: Path) -> tarfile.TarFile | zipfile.ZipFile:
    return zipfile.ZipFile(archive) if archive.name.lower().endswith(".zip") else tarfile.open(archive)


def _members(content: tarfile.TarFile | zipfile.ZipFile) -> tuple[list[str], int]:
    """The names of all members, and how many of them are files; a tar archive is read to its end for them."""
    if isinstance(content, tarfile.TarFile):
        members = content.getmembers()
        return [member.name for member in members], sum(not member.isdir() for member in members)
    infos = content.infolist()
    return [info.filename for info in infos], sum(not info.is_dir() for info in infos)


def _tops(archive: Path, names: list[str]) -> list[str]:
    """The first parts of the members' paths, sorted; a member that leads out of the folder is refused."""
    tops = set()
    for name in names:
        path = os.path.normpath(name)  # no link to resolve, for the folder unpacked into is new
        top = Path(path).parts[:1]  # none of the folder itself
        if os.path.isabs(path) or top == (os.pardir,):
            raise InputError(f"{archive} holds {name!r}, which leads out of the folder: fetch it anew")
        tops.update(top)
    if not tops:
        raise InputError(f"{archive} holds no files: fetch it again")
    return sorted(tops)


def _check_absent(archive: Path, entries: list[Path]) -> None:
    for entry in entries:
        if os.path.lexists(entry):
            raise InputError(f"{entry} exists and would be overwritten by {archive}: pass another folder, or remove it")


def _damaged(archive: Path, error: Exception) -> InputError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(":")
    return InputError(f"{archive} cannot be unpacked ({reason}): damaged or protected, fetch it again")
