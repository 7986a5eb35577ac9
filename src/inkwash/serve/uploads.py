"""Pictures that clients have sent before the request that uses them, by the hash of their bytes."""

import hashlib
import re
import time
from pathlib import Path

from inkwash.files import write_bytes
from inkwash.serve.errors import unknown
from inkwash.serve.images import decoded, suffix_of

HASH = re.compile(r"[0-9a-f]{64}")
KEPT = 24 * 3600.0  # seconds; jobs keep copies of their own


class Uploads:
    """The pictures of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def add(self, data: bytes) -> str:
        """Keep a picture for a day; its hash. Raises Refusal for no picture."""
        digest = hashlib.sha256(data).hexdigest()
        self.put(digest, data)
        return digest

    def put(self, name: str, data: bytes) -> None:
        """Keep a picture for a day by a name, which was checked. Raises Refusal for no picture."""
        suffix_of(data, "image")
        self.folder.mkdir(exist_ok=True)
        self.sweep()
        write_bytes(self.folder / name, data)

    def get(self, name: str) -> bytes:
        """A picture by its name, which was checked. Raises Refusal."""
        path = self.folder / name
        if not path.is_file():
            raise unknown("uploaded picture", name)
        return path.read_bytes()

    def sweep(self) -> None:
        """Remove old uploads."""
        for path in self.folder.glob("*"):
            if path.stat().st_mtime < time.time() - KEPT:
                path.unlink(missing_ok=True)

    def picture(self, text: str, field: str) -> bytes:
        """The bytes of a hash, of base64 or of a data URL. Raises Refusal."""
        if not HASH.fullmatch(text):
            return decoded(text, field)
        return self.get(text)
