from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.evaluation import chunks
from secateur.evaluation.chunks import ChunkStore, Gathering, Rows, Share, Unreadable


class Numbers(Dataset[Any]):
    """The first so many numbers; some of them stop the run."""

    def __init__(self, count: int, stop: dict[int, Any] | None = None) -> None:
        self.count, self.stop, self.read = count, stop or {}, list[int]()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        if isinstance(self.stop.get(index), BaseException):
            raise self.stop[index]
        return self.stop.get(index, index)


def squares(items: Iterator[int]) -> Rows:
    held = list(items)
    return {"square": torch.tensor([float(item) ** 2 for item in held]), "pair": torch.tensor([[i, -i] for i in held])}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK", 4)


def expected(count: int) -> Tensor:
    return torch.arange(float(count)).square()


@pytest.mark.parametrize("count", [1, 4, 11])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("together", [1, 3])
def test_rows_come_in_order_whatever_the_workers(count: int, workers: int, together: int, tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path, workers)
    rows = store.gather(Gathering("numbers", 0, Numbers(count), squares, together))
    assert torch.equal(rows["square"], expected(count))
    assert rows["pair"].shape == (count, 2)


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), ValueError("a bug"), MemoryError()])
def test_a_run_that_was_stopped_goes_on_where_it_was(stop: BaseException, tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path)
    with pytest.raises(type(stop)):
        store.gather(Gathering("numbers", 0, Numbers(11, {9: stop}), squares))
    again = Numbers(11)
    rows = store.gather(Gathering("numbers", 0, again, squares))
    assert again.read == [8, 9, 10]
    assert torch.equal(rows["square"], expected(11))
    third = Numbers(11)
    assert torch.equal(store.gather(Gathering("numbers", 0, third, squares))["pair"], rows["pair"])
    assert third.read == []


def test_without_a_folder_rows_are_the_same_and_nothing_is_kept(tmp_path: Path) -> None:
    store, before = ChunkStore(), torch.get_rng_state()
    again = Numbers(11)
    for _ in range(2):
        rows = store.gather(Gathering("numbers", 0, again, squares))
        assert torch.equal(rows["square"], expected(11))
    assert again.read == 2 * list(range(11)) and torch.equal(torch.get_rng_state(), before)
    store.clear()
    with pytest.raises(KeyboardInterrupt, match=r"^$"), store.kept_when_stopped():
        raise KeyboardInterrupt
    assert torch.equal(store.gather(Gathering("places", 0, range(3, 9), squares))["square"], expected(9)[3:])


def test_another_identity_shares_nothing(tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path)
    store.gather(Gathering("numbers", {"network": "a"}, Numbers(5), squares))
    again = Numbers(5)
    store.gather(Gathering("numbers", {"network": "b"}, again, squares))
    assert again.read == list(range(5))


def test_a_damaged_chunk_is_made_again(tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path)
    rows = store.gather(Gathering("numbers", 0, Numbers(11), squares))
    files = sorted(store.folder.rglob("*.safetensors"))
    assert len(files) == 3
    files[1].write_bytes(files[1].read_bytes()[:-3])
    again = Numbers(11)
    assert torch.equal(store.gather(Gathering("numbers", 0, again, squares))["square"], rows["square"])
    assert again.read == [4, 5, 6, 7]


def test_processes_that_share_the_folder_share_the_work(tmp_path: Path) -> None:
    one, other = (ChunkStore(tmp_path, share=Share(index, 2)) for index in (0, 1))
    mine, theirs = Numbers(11), Numbers(11)
    with pytest.raises(ValueError, match=r"chunks \[0, 2\] are missing; do all processes share this folder"):
        other.gather(Gathering("numbers", 0, theirs, squares))
    assert theirs.read == [4, 5, 6, 7]
    rows = one.gather(Gathering("numbers", 0, mine, squares))
    assert mine.read == [0, 1, 2, 3, 8, 9, 10]
    assert torch.equal(rows["square"], expected(11))
    whole = ChunkStore(tmp_path / "alone").gather(Gathering("numbers", 0, Numbers(11), squares))
    assert torch.equal(whole["square"], rows["square"]) and torch.equal(whole["pair"], rows["pair"])


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_read_is_said_in_its_own_words(workers: int, tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path, workers)
    broken = Numbers(6, {5: Unreadable("f.png: a damaged image")})
    with pytest.raises(ValueError, match=r"^f\.png: a damaged image$"):
        store.gather(Gathering("numbers", 0, broken, squares))
    gone = Numbers(6, {5: Unreadable("f.png: no such file", missing=True)})
    with pytest.raises(FileNotFoundError, match=r"^f\.png: no such file$"):
        store.gather(Gathering("numbers", 0, gone, squares))


def test_rows_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path)
    with pytest.raises(ValueError, match="chunk 0 has 4 items, but not as many rows"):
        store.gather(Gathering("numbers", 0, Numbers(5), lambda items: {"first": torch.tensor([next(items)])}))
    with pytest.raises(ValueError, match="not all images gave the same kind of numbers"):
        store.gather(Gathering("n", 0, Numbers(5), lambda items: {"x": torch.zeros(n := len(list(items)), n)}))
    with pytest.raises(ValueError, match="numbers: there are no items"):
        Gathering("numbers", 0, Numbers(0), squares)
    with pytest.raises(ValueError, match="workers must be at least 0"):
        ChunkStore.within(tmp_path, -1)


def test_nothing_stays_when_all_is_done(tmp_path: Path) -> None:
    store = ChunkStore.within(tmp_path)
    store.gather(Gathering("numbers", 0, Numbers(5), squares))
    (tmp_path / "results.json").touch()
    store.clear()
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def _gather_share(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        store = ChunkStore.within(Path(folder))
        rows = store.gather(Gathering("numbers", 0, Numbers(300), squares))
        torch.save((store.share.index, rows["square"]), f"{folder}/{rank}.pt")
        store.clear()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_of_torch_distributed_get_the_same_rows(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_gather_share, (str(tmp_path),), nprocs=2)
    held = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [rank for rank, _ in held] == [0, 1]
    assert torch.equal(held[0][1], held[1][1]) and torch.equal(held[0][1], expected(300))
    assert not (tmp_path / "unfinished").exists()
