from hypothesis import given
from hypothesis import strategies as st

from qwen_edit.weights.header import Header, TensorEntry
from qwen_edit.weights.placement import ALIGNMENT, place

START = 50

lengths = st.lists(st.one_of(st.integers(0, 200), st.integers(0, 5).map(lambda n: n * ALIGNMENT)), max_size=20)
blocks = st.integers(1, 300)


def header_of(lengths: list[int]) -> Header:
    entries, end = {}, START
    for number, length in enumerate(lengths):
        entries[str(number)] = TensorEntry("U8", (length,), end, length)
        end += length
    return Header("file", {}, entries, START, end)


@given(lengths=lengths, bytes_a_read=blocks)
def test_the_blocks_bring_every_byte_of_the_file_to_its_tensor(lengths: list[int], bytes_a_read: int) -> None:
    header = header_of(lengths)
    placement = place(header.tensors, bytes_a_read)

    came_from: list[int | None] = [None] * placement.bytes
    for span in placement.reads:
        offset = span.offset
        for piece in span.pieces:
            size = piece.stop - piece.start
            assert came_from[piece] == [None] * size
            came_from[piece] = list(range(offset, offset + size))
            offset += size
        assert offset == span.offset + span.bytes
    for name, entry in header.tensors.items():
        start = placement.starts[name]
        assert came_from[start : start + entry.bytes] == list(range(entry.offset, entry.offset + entry.bytes))


@given(lengths=lengths, bytes_a_read=blocks)
def test_tensors_and_the_buffer_are_aligned_and_blocks_are_whole_and_in_order(
    lengths: list[int], bytes_a_read: int
) -> None:
    placement = place(header_of(lengths).tensors, bytes_a_read)

    assert not [start for start in (*placement.starts.values(), placement.bytes) if start % ALIGNMENT]
    assert [span.bytes for span in placement.reads[:-1]] == [bytes_a_read] * (len(placement.reads) - 1)
    assert all(0 < span.bytes <= bytes_a_read for span in placement.reads)
    offsets = [span.offset for span in placement.reads]
    assert offsets == sorted(offsets)


@given(lengths=lengths, bytes_a_read=blocks, asked=st.sets(st.integers(0, 20)))
def test_some_of_the_tensors_are_read_without_the_others(
    lengths: list[int], bytes_a_read: int, asked: set[int]
) -> None:
    tensors = {name: entry for name, entry in header_of(lengths).tensors.items() if int(name) in asked}
    placement = place(tensors, bytes_a_read)

    read = [at for span in placement.reads for at in range(span.offset, span.offset + span.bytes)]
    assert read == [at for entry in tensors.values() for at in range(entry.offset, entry.offset + entry.bytes)]
    assert all(sum(piece.stop - piece.start for piece in span.pieces) == span.bytes for span in placement.reads)


def test_tensors_of_even_lengths_are_one_piece() -> None:
    placement = place(header_of([128, 64, 0, 640]).tensors, 1000)

    assert [span.pieces for span in placement.reads] == [(slice(0, 832),)]


def test_a_read_has_no_more_pieces_than_the_kernel_takes() -> None:
    placement = place(header_of([1] * 2500).tensors, 10_000)

    assert [len(span.pieces) for span in placement.reads] == [1024, 1024, 452]
