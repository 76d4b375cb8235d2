from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import folders
import pytest
import torch
from fakes import picture
from torch import nn

import bench
from bench import tasks
from bench.core.errors import BenchError, Unsupported
from bench.models import catalogue
from bench.models.loaded import Classifier, Loaded
from bench.tasks.base import subset
from bench.tasks.scores import proportion, ranks_of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    folders.images(root / "images")
    folders.captions(root, root / "images")
    return root


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return catalogue.load(str(folders.vit(tmp_path_factory.mktemp("models") / "vit")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return catalogue.load(str(folders.clip(tmp_path_factory.mktemp("models") / "clip")))


class Constant(nn.Module):
    """Embeds everything alike; one entry may be NaN."""

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(pixel_values), 5)

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(pixel_values), 8)

    def get_text_features(self, input_ids: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
        return self.value.expand(len(input_ids), 8)


def test_ranks_count_ties_and_nan_against_the_right_answer() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [2.0, math.nan, 1.0], [math.nan] * 3])
    own = torch.tensor([[True, False, False]] * 4)
    assert ranks_of(scores, own).tolist() == [0, 2, 1, 2]


def test_ranks_take_the_best_of_several_right_answers() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.7]])
    assert ranks_of(scores, torch.tensor([[True, False, False, True]])).tolist() == [1]


def test_proportions_have_wilson_intervals() -> None:
    metric = proportion([0] * 8 + [1] * 2, 1)
    assert metric.value == 80 and metric.n == 10 and metric.unit == "%"
    assert metric.ci95 == pytest.approx((49.02, 94.33), abs=0.01)  # Wilson's, by hand
    assert proportion([0] * 5, 1).ci95 == pytest.approx((56.55, 100.0), abs=0.01)


def test_subsets_are_spread_and_repeatable() -> None:
    assert subset(100, 10) == subset(100, 10) == subset(100, 99)[:10]
    assert len(set(subset(100, 10))) == 10
    assert max(subset(100, 10)) > 50 and subset(3, 10) == [0, 1, 2] and subset(3, None) == [0, 1, 2]


def test_image_folders_are_scored_image_by_image(data: Path, vit: Loaded) -> None:
    task = tasks.load(f"imagefolder:{data / 'images'}")
    seen: list[tuple[int, int]] = []
    scored = task.evaluate(vit, batch_size=8, progress=lambda *a: seen.append(a))
    assert len(task) == 20 and seen == [(8, 20), (16, 20), (20, 20)]
    hits = sum(scored.outcomes["correct"])
    assert scored.primary == "top1" and scored.metrics["top1"].value == 100 * hits / 20
    again = task.evaluate(vit, batch_size=8)  # from the prepared batches
    assert again == scored
    assert task.evaluate(vit, batch_size=3).outcomes == scored.outcomes
    assert task.evaluate(vit, limit=7).metrics["top1"].n == 7


def test_a_reduced_model_is_scored_through_the_same_call(data: Path, vit: Loaded) -> None:
    task = tasks.load(f"imagefolder:{data / 'images'}")
    plain = task.evaluate(vit)
    with bench.reduced(vit.model, "tome", r=0):
        assert task.evaluate(vit) == plain
    with bench.reduced(vit.model, "tome", r=16):
        assert task.evaluate(vit).metrics["top1"].n == 20


def test_retrieval_with_several_captions(data: Path, clip: Loaded) -> None:
    task = tasks.load(f"karpathy:{data / 'dataset.json'}:{data / 'images'}")
    scored = task.evaluate(clip)
    assert len(task) == 15  # the train split is left out
    assert len(scored.outcomes["rank_i2t"]) == 15 and len(scored.outcomes["rank_t2i"]) == 30
    assert set(scored.metrics) == {f"{w}_r{k}" for w in ("i2t", "t2i") for k in (1, 5, 10)}
    assert scored.metrics["t2i_r5"].n == 30
    limited = task.evaluate(clip, limit=4)
    assert max(limited.outcomes["rank_i2t"]) < 8 and max(limited.outcomes["rank_t2i"]) < 4


def test_another_split_is_named_by_an_option(data: Path) -> None:
    name = f"karpathy:{data / 'dataset.json'}:{data / 'images'}"
    train, test = tasks.load(name + "?split=train"), tasks.load(name)
    assert (len(train), len(test)) == (5, 15) and train.version != test.version
    assert len(tasks.load(name + "?split=test")) == 15


def test_retrieval_agrees_with_a_plain_loop(data: Path, clip: Loaded) -> None:
    task = tasks.load(f"karpathy:{data / 'dataset.json'}:{data / 'images'}")
    scored = task.evaluate(clip)
    assert clip.transform is not None and clip.tokenizer is not None
    pictures = torch.stack([clip.transform(task.prepared.pictures.open(i)) for i in range(15)])
    texts = [text for own in task.texts for text in own]
    with torch.inference_mode():
        tokens = clip.tokenizer(texts)
        out = clip.model(pixel_values=pictures, **tokens)
    scores = (out.image_embeds @ out.text_embeds.T).tolist()
    for image, row in enumerate(scores):
        best = max(row[2 * image : 2 * image + 2])
        others = [s for j, s in enumerate(row) if j // 2 != image]
        rank = sum(s > best + 1e-6 for s in others)
        ties = sum(abs(s - best) <= 1e-6 for s in others)
        assert rank <= scored.outcomes["rank_i2t"][image] <= rank + ties


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan])
def test_a_constant_embedding_scores_nothing(data: Path, clip: Loaded, value: float) -> None:
    flat = dataclasses.replace(clip, model=Constant(value))
    task = tasks.load(f"karpathy:{data / 'dataset.json'}:{data / 'images'}")
    assert all(m.value == 0 for name, m in task.evaluate(flat).metrics.items() if "10" not in name)
    common = (flat.name, flat.model, flat.image_size, 3, flat.transform)
    classes = Classifier(*common, classes=5)
    folder = tasks.load(f"imagefolder:{data / 'images'}")
    assert folder.evaluate(classes).metrics["top1"].value == 0


def test_images_that_do_not_decode_count_as_wrong_and_are_named(
    tmp_path: Path, vit: Loaded, clip: Loaded
) -> None:
    pictures = folders.images(tmp_path / "images")
    (pictures / "b" / "1.png").write_bytes(b"not a picture")
    (pictures / "c" / "0.png").write_bytes((pictures / "c" / "1.png").read_bytes()[:500])
    scored = tasks.load(f"imagefolder:{pictures}").evaluate(vit)
    assert scored.failed == ["b/1.png", "c/0.png"]
    assert scored.outcomes["correct"][5] == scored.outcomes["correct"][8] == 0
    task = tasks.load(f"karpathy:{folders.captions(tmp_path, pictures)}:{pictures}")
    found = task.evaluate(clip)
    assert found.failed == ["b/1.png", "c/0.png"]
    assert found.outcomes["rank_i2t"][4] == 28  # behind every other picture's captions
    assert found.outcomes["rank_t2i"][8:10] == [14, 14]


def test_a_data_set_folder_gives_the_task_its_columns_allow(
    tmp_path: Path, vit: Loaded, clip: Loaded
) -> None:
    import datasets

    task = tasks.load(f"hf-dataset:{folders.images(tmp_path / 'images')}")
    assert task.evaluate(vit).metrics["top1"].n == 20
    files = sorted(str(f) for f in (tmp_path / "images").rglob("*.png"))
    rows = {"image": files, "caption": ["red square"] * 20}
    data = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    data.save_to_disk(str(tmp_path / "pairs"))
    pairs = tasks.load(f"hf-dataset:{tmp_path / 'pairs'}")
    assert pairs.evaluate(clip, limit=6).metrics["i2t_r1"].value == 0  # all captions are the same
    datasets.Dataset.from_dict({"x": [1]}).save_to_disk(str(tmp_path / "odd"))
    with pytest.raises(BenchError, match="has columns"):
        tasks.load(f"hf-dataset:{tmp_path / 'odd'}")


def test_random_weights_and_the_wrong_kind_of_model_are_refused(
    data: Path, vit: Loaded, clip: Loaded
) -> None:
    folder = tasks.load(f"imagefolder:{data / 'images'}")
    with pytest.raises(Unsupported, match="needs a classifier model"):
        folder.evaluate(clip)
    with pytest.raises(Unsupported, match="5 outputs, task .* has 4 classes"):
        other = dataclasses.replace(vit)
        folder.classes = 4
        folder.evaluate(other)
    folder.classes = 5
    random = dataclasses.replace(vit, provenance={"weights": "random"})
    with pytest.raises(BenchError, match="random weights: no accuracy"):
        folder.evaluate(random)
    with pytest.raises(BenchError, match="preprocessor_config.json"):
        folder.evaluate(dataclasses.replace(vit, transform=None, name="other"))


def test_versions_follow_the_data(tmp_path: Path) -> None:
    pictures = folders.images(tmp_path / "images")
    before = tasks.load(f"imagefolder:{pictures}").version
    assert tasks.load(f"imagefolder:{pictures}").version == before
    (pictures / "a" / "0.png").unlink()
    assert tasks.load(f"imagefolder:{pictures}").version != before


def test_the_embedded_tasks_load() -> None:
    fashion, emoji = tasks.load("fashion-mnist"), tasks.load("emoji-retrieval")
    assert len(fashion) == 2000 and len(emoji) > 1000
    assert fashion.version != emoji.version


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fashion-minst", "unknown task .* did you mean 'fashion-mnist'"),
        ("imagefolders:x", "unknown task .* did you mean 'imagefolder'"),
        ("imagefolder:", "names no data"),
        ("imagefolder:/no/such", "cannot read /no/such"),
        ("karpathy:/no/such.json", "cannot read"),
        ("hf-dataset:/no/such", "cannot load data set"),
    ],
)
def test_wrong_names_are_one_clear_line(name: str, message: str) -> None:
    with pytest.raises(BenchError, match=message) as error:
        tasks.load(name)
    assert "\n" not in str(error.value)


def test_files_of_another_shape_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": [{"file": 1}]}')
    with pytest.raises(BenchError, match="no Karpathy-style file"):
        tasks.load(f"karpathy:{tmp_path / 'x.json'}")
    (tmp_path / "y.json").write_text('[{"image": "a.png", "caption": "one"}]')
    with pytest.raises(BenchError, match="none of 1 images can be opened, such as a.png"):
        tasks.load(f"karpathy:{tmp_path / 'y.json'}")
    picture(tmp_path / "a.png")
    assert len(tasks.load(f"karpathy:{tmp_path / 'y.json'}")) == 1
