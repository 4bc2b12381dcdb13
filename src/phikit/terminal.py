"""Talking to a model in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from phikit.chat.templates import THINK
from phikit.engine.talk import AS_PUBLISHED, Conversation, Manner
from phikit.errors import PhikitError

_COMMANDS = ("/new", "/quit", "/image", "/audio")


def answer(
    directory: Path,
    prompt: str,
    images: Sequence[Path] = (),
    sounds: Sequence[Path] = (),
    manner: Manner = AS_PUBLISHED,
) -> None:
    """Prints the answer to one prompt as it is written.

    Args:
        images, sounds: files that the prompt is about. With one, the prompt may be empty.

    Raises:
        PhikitError: the prompt is empty, or the model or a file cannot be read.
    """
    if not prompt.strip() and not images and not sounds:
        raise PhikitError("the prompt is empty", 'give one with -p "...", or on standard input')
    _print_pieces(Conversation(directory, manner).reply(prompt.strip(), images, sounds))


def converse(
    directory: Path,
    images: Sequence[Path] = (),
    sounds: Sequence[Path] = (),
    manner: Manner = AS_PUBLISHED,
) -> None:
    """Reads lines and prints answers until the end of the input (Ctrl-D) or /quit.

    /new forgets the conversation; /image FILE and /audio FILE add a file to the next message.
    Ctrl-C stops an answer, or a half-written line.

    Args:
        images, sounds: files that the first message is about.
    """
    print(f"{directory}\n/new starts over, /quit or Ctrl-D ends.\n")
    conversation = Conversation(directory, manner)
    seen, heard = list(images), list(sounds)
    while True:
        try:
            line = input("you  › ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/new":
            conversation.messages.clear()
            seen, heard = [], []
        elif command in ("/image", "/audio"):
            _attach(rest.strip(), seen if command == "/image" else heard)
        elif command.startswith("/") and command not in _COMMANDS and not rest:
            print(f"there is no {command}; there are {', '.join(_COMMANDS)}")
        elif line:
            print("phi  › ", end="", flush=True)
            try:
                _print_pieces(conversation.reply(line, seen, heard))
            except KeyboardInterrupt:
                print(" …")
            except PhikitError as e:
                print(f"error: {e}")
            seen, heard = [], []


def _attach(name: str, files: list[Path]) -> None:
    path = Path(name).expanduser()
    if not name or not path.is_file():
        print(f"error: {name or 'no name given'}: no such file")
        return
    files.append(path)
    print(f"       {path.name} goes with your next message")


def _print_pieces(pieces: Iterable[str]) -> None:
    """Prints an answer as it is written; on a terminal its thoughts are dim."""
    write = _writer()
    thinking = False
    for piece in pieces:
        thinking = thinking or THINK[0] in piece
        write(piece, thinking)
        thinking = thinking and THINK[1] not in piece
    print()


def _writer() -> Callable[[str, bool], None]:
    """Writes a piece of text, dim or not."""
    if not sys.stdout.isatty():
        return lambda text, _: print(text, end="", flush=True)
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    return lambda text, dim: console.print(text, end="", style="dim" if dim else None)
