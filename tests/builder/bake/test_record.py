import threading
from pathlib import Path

from builder.bake.record import Record, write
from qwen_edit.store.manifest import FILE_NAME, Entry, Manifest


def entry(path: str, size: int) -> Entry:
    return Entry(path, size, "0" * 64, "x/y", "z")


def test_many_threads_write_one_manifest(tmp_path: Path) -> None:
    record = Record(tmp_path, Manifest())
    files = [entry(f"file-{number:02}", number) for number in range(40)]
    threads = [threading.Thread(target=put_all, args=(record, files[start::4])) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Manifest.read(tmp_path) == Manifest(tuple(files))
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def put_all(record: Record, files: list[Entry]) -> None:
    for file in files:
        record.put(file)


def test_a_record_replaces_and_forgets(tmp_path: Path) -> None:
    record = Record(tmp_path, Manifest((entry("a", 1), entry("b", 3))))
    record.put(entry("a", 2))
    record.drop(["b", "unknown"])
    assert Manifest.read(tmp_path) == Manifest((entry("a", 2),))


def test_a_manifest_is_replaced_in_one_step(tmp_path: Path) -> None:
    write(tmp_path, Manifest())
    with (tmp_path / FILE_NAME).open() as before:
        write(tmp_path, Manifest((entry("a", 1),)))
        assert Manifest.parse(before.read()) == Manifest()
