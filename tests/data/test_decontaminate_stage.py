"""`data.decontaminate` over samples, problems for reinforcement learning, and preference pairs."""

import json
from pathlib import Path

import pytest

from phikit.chat.templates import NANO_SPECIAL
from phikit.chat.tokenizer import train_bpe
from phikit.data.stage_decontaminate import DECONTAMINATE, DecontaminateConfig
from phikit.errors import PhikitError
from phikit.records import Pair, Sample, read_records, write_records
from phikit.stage import Context

ITEM = (
    "A merchant packs 14 crates with 23 oranges each and gives away 37 of them on the way to the "
    "harbour. How many oranges does the merchant have left in the end?"
)
CHOICES = (
    "Which of these metals is a liquid at room temperature and was once used in thermometers? "
    "A) lead B) mercury C) silver D) copper"
)


def ask(text: str, kind: str = "problem") -> Sample:
    return Sample(kind=kind, source="synthetic", messages=({"role": "user", "content": text},))


def run(tmp_path: Path, **inputs: Path) -> tuple[dict, list[dict]]:
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    summary = DECONTAMINATE.run(Context(folder), DecontaminateConfig(), inputs)
    lines = (folder / "contamination.jsonl").read_text().splitlines()
    return summary, [json.loads(line) for line in lines]


def stage(tmp_path: Path, name: str, cls: type, records: list) -> Path:
    (tmp_path / name).mkdir()
    write_records(tmp_path / name / f"{cls.__name__.lower()}s.parquet", records, cls)
    return tmp_path / name


def items(tmp_path: Path) -> Path:
    (tmp_path / "items").mkdir()
    write_records(tmp_path / "items" / "items.parquet", [ask(ITEM), ask(CHOICES)], Sample)
    return tmp_path / "items"


@pytest.mark.parametrize(
    "disguised",
    [
        ITEM.upper(),
        ITEM.replace(" ", "  \n").replace(".", " !!"),
        ITEM.replace("a", "а").replace("o", "ο"),  # Cyrillic, Greek
        ITEM.replace("merchant", "mer\u00adchant").replace("the", "t\u200bhe"),
        "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in ITEM),  # full width
        ITEM.replace("14", "15").replace("37", "39"),
        "Here is one. " + ITEM + " Think first.",
        CHOICES.replace("A) lead B) mercury C) silver D) copper",
                        "A) copper B) silver C) mercury D) lead"),
    ],
)  # fmt: skip
def test_a_disguised_item_is_kept_out_of_the_problems(tmp_path, disguised) -> None:
    clean = ask("What is the capital of the country that lies to the north of Spain, and why so?")
    samples = stage(tmp_path, "problems", Sample, [clean, ask(disguised)])
    summary, ledger = run(tmp_path, items=items(tmp_path), samples=samples)
    assert read_records(tmp_path / "out" / "samples.parquet", Sample) == [clean]
    assert summary["by_kind"] == {"problem": {"read": 2, "removed": 1}}
    assert ledger[0]["item_text"] in (ITEM, CHOICES) and ledger[0]["text"] == disguised


def test_pairs_are_compared_as_words_with_either_answer(tmp_path) -> None:
    tokenizer = train_bpe([ITEM, CHOICES, "some more text to learn from"] * 5, 400, NANO_SPECIAL)
    tokenizer.save(tmp_path / "tokenizer")

    def pair(prompt: str, chosen: str, rejected: str) -> Pair:
        texts = (prompt, chosen, rejected)
        prompt_ids, chosen_ids, rejected_ids = (tuple(tokenizer.encode(t)) for t in texts)
        return Pair(prompt_ids=prompt_ids, chosen_ids=chosen_ids, rejected_ids=rejected_ids,
                    kind="judge")  # fmt: skip

    good = pair("Why is the sky blue?", "Because of scattering.", "Because of the sea.")
    records = [
        good,
        pair(ITEM, "285", "322"),
        pair("Tell me a riddle.", ITEM.lower(), "I know none."),
        pair("Tell me a riddle.", "I know none.", f"Well: {ITEM}"),
    ]
    pairs = stage(tmp_path, "pairs", Pair, records)
    given = {"items": items(tmp_path), "pairs": pairs}
    summary, ledger = run(tmp_path, **given, tokenizer=tmp_path / "tokenizer")
    assert read_records(tmp_path / "out" / "pairs.parquet", Pair) == [good]
    assert summary["by_kind"] == {"judge": {"read": 4, "removed": 3}} and summary["pairs"] == 1
    assert {row["document"] for row in ledger} == {p.id for p in records[1:]}
    with pytest.raises(PhikitError, match="tokenizer"):
        run(tmp_path, **given)
    with pytest.raises(PhikitError, match="nothing to decontaminate"):
        run(tmp_path, items=given["items"])


def test_a_question_too_short_for_ngrams_is_found_in_a_chat_that_answers_it(tmp_path) -> None:
    short = tmp_path / "items"
    write_records(short / "items.parquet", [ask("What is the capital of France?")], Sample)

    def chat(question: str) -> Sample:
        turns = [("user", question), ("assistant", "It is Paris.")]
        return Sample(
            kind="chat", source="synthetic",
            messages=tuple({"role": role, "content": text} for role, text in turns),
        )  # fmt: skip

    asked = [chat("what is the capital of FRANCE"), chat("What is the capital of Peru?")]
    given = stage(tmp_path, "samples", Sample, asked)
    summary, ledger = run(tmp_path, items=short, samples=given)
    assert read_records(tmp_path / "out" / "samples.parquet", Sample) == asked[1:]
    assert summary["contaminated"] == 1
    assert [(row["rule"], row["text"]) for row in ledger] == [
        ("same words", "what is the capital of FRANCE")
    ]
