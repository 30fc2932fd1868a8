"""When the engine is imported: beside the reading, before the weights are waited for."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from qwen_edit.edit.hooks import never
from qwen_edit.errors import ModelUnavailable
from qwen_edit.loading import start
from qwen_edit.loading.incoming import IncomingModel
from qwen_edit.loading.loader import Loader
from qwen_edit.loading.switches import Switches
from qwen_edit.machine.device import MachineSetup
from qwen_edit.machine.setup import Choice
from qwen_edit.model.transformer.expansion import Expanded
from qwen_edit.model.transformer.nunchaku_engine import MODULE
from qwen_edit.settings import Settings
from qwen_edit.store.catalog import LIGHTNING
from tests.support.engine import STAND_IN, changed_engine

ON_CPU = MachineSetup(torch.device("cpu"), Choice("nunchaku", "nunchaku: the test asks for it"), None)


@pytest.fixture
def no_engine_yet() -> Iterator[None]:
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "nunchaku"]:
        del sys.modules[name]


@pytest.mark.usefixtures("no_engine_yet")
def test_the_engine_is_imported_after_the_reading_began_and_before_the_weights_are_waited_for(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_there: list[tuple[str, bool]] = []
    begin, expanded = Loader.begin, IncomingModel.expanded

    def noted_begin(loader: Loader, *arguments: object) -> IncomingModel:
        incoming = begin(loader, *arguments)  # type: ignore[arg-type]
        is_there.append(("reading", MODULE in sys.modules))
        return incoming

    def noted_expanded(incoming: IncomingModel) -> Expanded:
        is_there.append(("waiting", MODULE in sys.modules))
        return expanded(incoming)

    monkeypatch.syspath_prepend(str(STAND_IN))
    monkeypatch.setattr(Loader, "begin", noted_begin)
    monkeypatch.setattr(Loader, "for_device", lambda settings, *_: Loader(settings.models, ON_CPU))
    monkeypatch.setattr(IncomingModel, "expanded", noted_expanded)

    start.load(Settings(models=models, device="cpu"), LIGHTNING, never)

    assert is_there == [("reading", False), ("waiting", True)]


@pytest.mark.usefixtures("no_engine_yet")
def test_an_engine_that_is_broken_does_not_wait_for_the_weights(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / f"{MODULE.replace('.', '/')}.py"
    module.parent.mkdir(parents=True)
    module.write_text("raise OSError('undefined symbol')")
    for folder in (module.parent, module.parent.parent, module.parent.parent.parent):
        (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))

    importing = Loader(models, ON_CPU).importing(Switches(), lean=True)
    with pytest.raises(ModelUnavailable, match=r"cannot be imported: OSError"), importing:
        pytest.fail("the weights are waited for")


@pytest.mark.usefixtures("no_engine_yet")
def test_an_engine_without_the_fused_product_does_not_wait_for_the_weights_either(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed_engine(tmp_path, "ops/fused.py", "del fused_qkv_norm_rottary")
    monkeypatch.syspath_prepend(str(tmp_path))

    importing = Loader(models, ON_CPU).importing(Switches(fused_qkv=True), lean=True)
    with pytest.raises(ModelUnavailable, match=r"which QWEN_EDIT_FUSED_QKV=1 calls; leave that out"), importing:
        pytest.fail("the weights are waited for")
