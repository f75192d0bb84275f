"""Folders of tiny random Emu3 models, and what was imported from them."""

import pytest
import torch
from support.hub_folders import WRITERS, make_model
from transformers import Emu3ForConditionalGeneration


@pytest.fixture(scope="session")
def models() -> dict[torch.dtype, Emu3ForConditionalGeneration]:
    return {dtype: make_model(dtype) for dtype in (torch.float32, torch.bfloat16)}


@pytest.fixture(scope="session")
def hub_folders(models, tmp_path_factory):
    """Folder of each (layout, dtype)."""
    root = tmp_path_factory.mktemp("hub")
    folders = {}
    for dtype, model in models.items():
        for layout, write_layout in WRITERS.items():
            folders[layout, dtype] = root / f"{layout}-{dtype.itemsize}"
            write_layout(model, folders[layout, dtype])
    return folders


@pytest.fixture(scope="session")
def checkpoints(hub_folders, tmp_path_factory, mesh):
    """What was imported from each of them; large tables in many chunks, as those of the 8B."""
    from emu3_megatron.interchange import sharded
    from emu3_megatron.interchange.importing import import_folder

    root = tmp_path_factory.mktemp("imported")
    imported = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "_AT_ONCE", 2**14)
        for (layout, dtype), folder in hub_folders.items():
            imported[layout, dtype] = root / folder.name
            import_folder(folder, imported[layout, dtype])
    return imported
