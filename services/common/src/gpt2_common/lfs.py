"""Git LFS pointers: the small text files that a clone without `git lfs` holds in place of large ones."""

_BEGIN = b"version https://git-lfs.github.com/spec/"


def lfs_problem(name: str, beginning: bytes) -> str | None:
    """What is wrong with a file that is a Git LFS pointer; None for any other file.

    Args:
        name: The file's name, for the message.
        beginning: Its first 64 bytes or more.
    """
    if not beginning.startswith(_BEGIN):
        return None
    return f"{name} is a Git LFS pointer: fetch the file itself (git lfs pull)"
