import subprocess
import sys
from pathlib import Path

from builder.made.demo import files
from builder.verify.command import main as verify
from qwen_edit.store.catalog import CHECKPOINTS
from qwen_edit.store.manifest import Manifest
from tests.support.places import ROOT
from tests.support.programs import files_below


def test_the_command_lays_out_the_committed_files_and_a_manifest_that_names_them_the_demo(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "builder", "demo", "--models", str(tmp_path)], cwd=ROOT, check=True)

    laid_out = files_below(tmp_path)
    assert {path: data for path, data in laid_out.items() if path != "manifest.json"} == files_below(files.MODEL)
    assert {checkpoint.path for checkpoint in CHECKPOINTS} < set(laid_out)
    manifest = Manifest.read(tmp_path)
    assert manifest is not None
    assert {(entry.repository, entry.revision) for entry in manifest.files} == {("demo", "1")}
    assert verify(["--models", str(tmp_path)]) == 0


def test_it_weighs_at_most_twelve_megabytes() -> None:
    assert sum(map(len, files_below(files.MODEL).values())) <= 12_000_000


def test_it_leaves_what_else_is_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")

    files.write(tmp_path)

    assert (tmp_path / "mine.txt").read_text() == "mine"
