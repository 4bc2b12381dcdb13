"""Talking to a model in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from phikit.engine.talk import Conversation
from phikit.engine.talk_media import respond_to_files
from phikit.errors import PhikitError


def answer(
    directory: Path, prompt: str, images: Sequence[Path] = (), sounds: Sequence[Path] = ()
) -> None:
    """Prints the answer to one prompt as it is written.

    Args:
        images, sounds: files that the prompt is about. With one, the prompt may be empty.

    Raises:
        PhikitError: the prompt is empty, or the model or a file cannot be read.
    """
    if images or sounds:
        _print_pieces(respond_to_files(directory, prompt.strip(), images, sounds))
        return
    if not prompt.strip():
        raise PhikitError("the prompt is empty", 'give one with -p "...", or on standard input')
    _print_reply(Conversation(directory), prompt.strip())


def converse(directory: Path) -> None:
    """Reads lines and prints answers until the end of the input (Ctrl-D) or /quit.

    /new forgets the conversation. Ctrl-C stops an answer, or a half-written line.
    """
    print(f"{directory}\n/new starts over, /quit or Ctrl-D ends.\n")
    conversation = Conversation(directory)
    while True:
        try:
            line = input("you  › ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            continue
        if line == "/quit":
            return
        if line == "/new":
            conversation = Conversation(directory)
        elif line:
            print("phi  › ", end="")
            try:
                _print_reply(conversation, line)
            except KeyboardInterrupt:
                print(" …")
            except PhikitError as e:
                print(f"error: {e}")


def _print_reply(conversation: Conversation, line: str) -> None:
    _print_pieces(conversation.reply(line))


def _print_pieces(pieces: Iterable[str]) -> None:
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
