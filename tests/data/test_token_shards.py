import numpy as np
import pytest

from phikit.data.shards import Pool, Shards, write_shards
from phikit.errors import PhikitError

DOCUMENTS = [[1, 2, 9], [3, 9], [100_351, 4_000_000_000, 9]]


def write(folder):
    pool = Pool(folder / ".pool.bin")
    pool.add("web", DOCUMENTS[:1])
    pool.add("code", DOCUMENTS[1:2])
    pool.add("web", DOCUMENTS[2:])
    pool.finish()
    assert pool.of("web").tolist() == [0, 2]
    order = np.array([2, 1, 0, 2])
    shares = np.array([0, 1, 0, 0])
    return write_shards(folder, pool.read(order), shares, ["web", "code"], {"vocab_size": 5})


def test_documents_come_back_in_mixture_order(tmp_path) -> None:
    assert write(tmp_path) == 11
    shards = Shards(tmp_path)
    assert [d.tolist() for d in shards.documents()] == [DOCUMENTS[i] for i in (2, 1, 0, 2)]
    assert [shards.sources[i] for i in shards.source_of] == ["web", "code", "web", "web"]
    assert len(shards) == 4
    assert shards.index["vocab_size"] == 5
    assert (tmp_path / "tokens.bin").read_bytes()[:4] == (100_351).to_bytes(4, "little")


def test_damaged_shards_are_refused(tmp_path) -> None:
    write(tmp_path)
    whole = (tmp_path / "tokens.bin").read_bytes()
    (tmp_path / "tokens.bin").write_bytes(whole[:-4])
    with pytest.raises(PhikitError, match=r"corrupt shards.*11 tokens.*has 10 tokens"):
        Shards(tmp_path)
    (tmp_path / "tokens.bin").unlink()
    with pytest.raises(PhikitError, match=r"tokens\.bin"):
        Shards(tmp_path)
    (tmp_path / "tokens.bin").write_bytes(whole)
    (tmp_path / "bounds.npy").write_bytes(b"nonsense")
    with pytest.raises(PhikitError, match=r"bounds\.npy: corrupt"):
        Shards(tmp_path)
