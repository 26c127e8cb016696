"""What people download: `python tools/release.py --out DIR [--wheels PLATFORM ...]`.

    the commit HEAD --> jwks-server-VERSION.pyz      all that runs, in one file
                    --> jwks-server-VERSION.tar.gz   all that is in the repository
    requirements.lock > wheels-PLATFORM/             the packages, for an installation offline
                    --> SHA256SUMS

Rules of this file:
- Only the commit counts, never the working tree: made again, each file is the same, octet by octet.
- Times, orders and permissions are those of the commit, or fixed.

It leaves out: signatures, and uploading.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import lock

ROOT = lock.ROOT
NOT_IN_THE_ONE_FILE = re.compile(r"(tests|bench|docs(?!/rubrics)|tools|deploy|\.ci)/")
IN_THE_ONE_FILE = re.compile(r".*\.(py|sql|html|js|css|svg)$|LICENSE$|docs/rubrics/.*\.json$")
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip archive can name
SHEBANG = b"#!/usr/bin/env python3\n"


def git(*words: str) -> bytes:
    """The output of a git command in the repository."""
    return subprocess.run(["git", *words], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout  # noqa: S603, S607


def committed() -> Iterator[tuple[str, bytes]]:
    """The files of the commit by name."""
    with tarfile.open(fileobj=io.BytesIO(git("archive", "--format=tar", "HEAD"))) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            stream = archive.extractfile(member)
            if stream is not None:
                yield member.name, stream.read()


def one_file(files: dict[str, bytes]) -> bytes:
    """The archive that Python runs."""
    chosen = {
        name: content
        for name, content in files.items()
        if IN_THE_ONE_FILE.match(name) and not NOT_IN_THE_ONE_FILE.match(name)
    }
    chosen["__main__.py"] = files["tools/pyz_main.py"]
    packed = io.BytesIO(SHEBANG)
    packed.seek(0, io.SEEK_END)
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(chosen):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, also if made on Windows
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, chosen[name])
    return packed.getvalue()


def source(name: str) -> bytes:
    """Everything of the commit, in a folder of its own."""
    packed = git("archive", "--format=tar", f"--prefix={name}/", "HEAD")
    return gzip.compress(packed, mtime=0)


def fetch_wheels(platform: str, folder: Path) -> None:
    """The locked packages for every Python on a platform, and the lock beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = folder / "chosen.txt"
    for python in lock.PYTHONS:
        chosen.write_text(lock.lines_for(python, (ROOT / "requirements.lock").read_text("utf-8")))
        subprocess.run(  # noqa: S603
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--disable-pip-version-check", "--dest", str(folder), "--require-hashes"),
                *lock.target(platform, python),
                *("-r", str(chosen)),
            ],
            check=True,
        )
    chosen.unlink()
    shutil.copy(ROOT / "requirements.lock", folder)


def version_of(files: dict[str, bytes]) -> str:
    """The version that the commit names."""
    found = re.search(r'__version__ = "([^"]+)"', files["jwksd/__init__.py"].decode())
    if found is None:
        raise ValueError("jwksd/__init__.py names no version")
    return found[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="release.py", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--wheels", nargs="+", default=[], choices=lock.PLATFORMS)
    options = parser.parse_args(arguments)
    files = dict(committed())
    name = f"jwks-server-{version_of(files)}"
    options.out.mkdir(parents=True, exist_ok=True)
    made = {f"{name}.pyz": one_file(files), f"{name}.tar.gz": source(name)}
    for path, content in made.items():
        (options.out / path).write_bytes(content)
    for platform in options.wheels:
        folder = options.out / f"wheels-{platform}"
        fetch_wheels(platform, folder)
        made |= {f"{folder.name}/{path.name}": path.read_bytes() for path in folder.iterdir()}
    sums = [f"{hashlib.sha256(made[path]).hexdigest()}  {path}\n" for path in sorted(made)]
    (options.out / "SHA256SUMS").write_text("".join(sums), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
