"""The CVPR 2023 recipes: one student, three tasks, any labels; and the head that a checkpoint brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="networks are torch modules")
pytest.importorskip("timm", reason="networks are made beside timm's")
torchvision = pytest.importorskip("torchvision", reason="the students are torchvision's networks in stages")

from vsa_rt.contracts import Task, scores_kind
from vsa_rt.errors import CheckpointError
from vsa_rt.export.ensemble import load_backbones, load_ensemble
from vsa_rt.export.networks.sentiment_student import SentimentStudent
from vsa_rt.label_sets import LABEL_SETS
from vsa_rt.recipe import Recipe, known_widths
from vsa_rt.recipe_file import find_recipe, read_recipe, shipped_names, with_options

#: The paper's networks with the length of their features (Feng et al. 2023, section 4).
WIDTHS = {"vgg16": 512, "vgg19": 512, "resnet18": 512, "resnet50": 2048, "resnet101": 2048}


def recipe_of(name: str, **settings: str) -> Recipe:
    return with_options(read_recipe(find_recipe(name)), settings)


@pytest.fixture(scope="module")
def amalgamated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the published training script: the student, a teacher, and what the script keeps beside them."""
    torch.manual_seed(0)
    student = SentimentStudent("resnet18").state_dict()
    state = {f"stu.{key}": value for key, value in student.items()}
    state |= {"stu.head.weight": torch.randn(8, 512), "stu.head.bias": torch.randn(8)}
    state |= {"t_high.stage1.0.weight": torch.randn(64, 3, 7, 7), "t_high.head.weight": torch.randn(8, 512)}
    path = tmp_path_factory.mktemp("student") / "model_best.pth.tar"
    torch.save(
        {"epoch": 30, "arch": "resnet18", "state_dict": state, "best_acc1": 0.7, "optimizer": {}}, path
    )
    return path


def test_every_network_of_the_paper_has_a_recipe_for_fis_eight_emotions() -> None:
    names = [name for name in shipped_names() if name.startswith("cvpr2023-")]
    assert names == sorted(f"cvpr2023-{arch}" for arch in WIDTHS)
    for arch, width in WIDTHS.items():
        recipe = recipe_of(f"cvpr2023-{arch}")
        assert known_widths(recipe) == {arch: width}
        assert (recipe.task, tuple(recipe.labels)) == (Task.SINGLE_LABEL, LABEL_SETS["fi"])


@pytest.mark.parametrize(
    ("task", "labels", "kind"),
    [
        ("sll", "unbiasedemo", "softmax"),
        ("mll", "emotic", "independent"),
        ("ldl", "emotion6", "distribution"),
    ],
)
def test_one_recipe_serves_every_task_and_dataset(task: str, labels: str, kind: str, tmp_path: Path) -> None:
    recipe = recipe_of("cvpr2023-resnet18", task=task, labels=labels)
    assert tuple(recipe.labels) == LABEL_SETS[labels]
    assert scores_kind(recipe.task, recipe.head.kind) == kind
    module = load_ensemble(recipe, tmp_path, random_seed=0).module
    with torch.inference_mode():
        scores = module(torch.randint(0, 255, (1, 256, 256, 3), dtype=torch.uint8))[-1]
    assert scores.shape == (1, len(recipe.labels))
    if kind != "independent":
        assert float(scores.sum()) == pytest.approx(1, abs=1e-5)


def test_a_students_checkpoint_brings_its_classifier_along(amalgamated: Path, tmp_path: Path) -> None:
    ensemble = load_ensemble(recipe_of("cvpr2023-resnet18"), tmp_path, {"resnet18": amalgamated})
    stored: dict[str, Any] = torch.load(amalgamated)["state_dict"]
    head: Any = ensemble.module.head
    assert torch.equal(head.fc.weight, stored["stu.head.weight"])
    assert torch.equal(head.fc.bias, stored["stu.head.bias"])


def test_its_classifier_is_refused_for_other_labels(amalgamated: Path, tmp_path: Path) -> None:
    recipe = recipe_of("cvpr2023-resnet18", task="ldl", labels="emotion6")
    with pytest.raises(
        CheckpointError, match=r"\(8, 512\) instead of \(7, 512\).*7 labels are wanted.*vsa-rt fit"
    ):
        load_ensemble(recipe, tmp_path, {"resnet18": amalgamated})


def test_imagenet_weights_are_told_by_their_names_and_bring_no_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None).eval()
    path = tmp_path / "resnet18.pth"
    torch.save(network.state_dict(), path)
    recipe = recipe_of("cvpr2023-resnet18")
    (loaded,) = load_backbones(recipe, tmp_path, {"resnet18": path})
    assert not loaded.head
    image = torch.randn(1, 3, 256, 256)
    network.fc = torch.nn.Identity()
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(image), network(image), rtol=1e-4, atol=1e-5)
    with pytest.raises(CheckpointError, match="no trained head"):
        load_ensemble(recipe, tmp_path, {"resnet18": path})


def test_images_are_warped_whole(tmp_path: Path) -> None:
    (loaded,) = load_backbones(recipe_of("cvpr2023-resnet18"), tmp_path, {}, 0)
    assert loaded.resize is not None
    assert (loaded.resize.height, loaded.resize.width, loaded.resize.fit, loaded.resize.kernel) == (256, 256, "warp", "bilinear")  # fmt: skip
    assert loaded.made.mean == (0.485, 0.456, 0.406)
    assert loaded.made.std == (0.229, 0.224, 0.225)
