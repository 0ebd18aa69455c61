"""A trained model from Python: `vit.load(run).predict(images)`."""

import itertools
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import vit
from tests.data.test_prepare import contents, pack
from tests.deploy.tiny import MODEL, digit_files, tiny_run
from vit.config import Config, FolderData, TfdsData
from vit.data import prepare as prepare_module
from vit.data.decode import BadImage
from vit.data.sources import Digits, Tfds
from vit.deploy import predict as module
from vit.errors import UserError
from vit.models.vit import merge
from vit.report.attention import maps
from vit.training.evaluate import evaluate_split, open_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("tiny") / "run")


@pytest.fixture(scope="module")
def predictor(run):
    return vit.load(run)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return digit_files(tmp_path_factory.mktemp("digits"))


class Never:
    """Nobody asks to stop."""

    class asked:
        is_set = staticmethod(lambda: False)


def of_evaluation(run, split):
    """What eval.py's own code says of a split."""
    model = open_run(run, "last")
    _, examples, _ = evaluate_split(model, split, Never())
    return model.task.probabilities(examples["outputs"])


def probabilities(results):
    return np.stack([result.probabilities for result in results])


def test_files_have_bitwise_the_probabilities_of_an_evaluation(run, predictor, files):
    np.testing.assert_array_equal(probabilities(predictor.predict(files)), of_evaluation(run, "test"))


def test_a_result_names_what_it_holds(predictor, files):
    (result,) = predictor.predict(files[0])
    assert result.class_names == list("0123456789")
    assert result.probabilities.shape == (10,)
    assert result.probabilities.sum() == pytest.approx(1)
    assert result.probability == result.probabilities.max()
    assert result.label == str(result.probabilities.argmax())
    assert result.top(3)[0] == (result.label, result.probability)
    assert [share for _, share in result.top()] == sorted(result.probabilities, reverse=True)[:5]
    assert result.attention is None
    assert repr(result) == f"Prediction(label={result.label!r}, probability={result.probability!r})"


def test_arrays_pictures_bytes_and_paths_are_the_same(predictor, files):
    arrays = [np.asarray(Image.open(path)) for path in files[:20]]
    expected = probabilities(predictor.predict(files[:20]))
    grey = np.stack(arrays)[..., None]
    for images in (
        [str(path) for path in files[:20]],
        [path.read_bytes() for path in files[:20]],
        arrays,
        grey,
        np.repeat(grey, 3, axis=3),
        [Image.open(path) for path in files[:20]],
        [Image.open(path).convert("RGBA") for path in files[:20]],
        [Image.open(path).convert("P") for path in files[:20]],
        [Image.fromarray(array.astype(np.uint16) * 257) for array in arrays],
        [Image.fromarray(array.astype(np.int32) * 257) for array in arrays],
        [Image.open(path).convert("RGBA").convert("RGBa") for path in files[:20]],
        (array[..., None] for array in arrays),
        [*files[:5], *arrays[5:10], *map(Image.open, files[10:20])],
    ):
        np.testing.assert_array_equal(probabilities(predictor.predict(images)), expected)
    assert predictor.predict([]) == []
    for one in (arrays[0], files[0], Image.open(files[0])):
        np.testing.assert_allclose(probabilities(predictor.predict(one)), expected[:1], atol=1e-6)


def test_images_of_any_size_and_colour(predictor):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, shape, np.uint8) for shape in [(50, 31, 3), (8, 8), (1, 1, 3), (200, 300, 1), (9, 9, 4)]]
    assert len(predictor.predict(images)) == 5
    assert predictor.view(images[0]).shape == (8, 8, 1)


def test_an_upright_picture_is_what_orientation_says(predictor, tmp_path):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    turned, upright = (tmp_path / f"{name}.png" for name in ("turned", "upright"))
    views = [predictor.view(x) for x in (turned, Image.open(turned), upright)]
    np.testing.assert_array_equal(views[0], views[2])
    np.testing.assert_array_equal(views[1], views[2])


def test_odd_pictures(predictor, tmp_path):
    clear = Image.new("PA", (8, 8))  # transparent all over: seen as white
    for picture in (clear, Image.new("La", (8, 8)), Image.new("RGBa", (8, 8))):
        assert (predictor.view(picture) == 255).all(), picture.mode
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    np.testing.assert_array_equal(predictor.view(grey.convert("I")), predictor.view(grey))
    grey.info["exif"] = b"Exif\0\0garbage"
    assert predictor.view(grey).shape == (8, 8, 1)
    exif = Image.Exif()
    exif[0x0112] = 9
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert predictor.view(Image.open(tmp_path / "a.jpg")).shape == (8, 8, 1)
    Image.effect_noise((200, 200), 50).save(tmp_path / "b.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:-2000])
    with Image.open(tmp_path / "cut.jpg") as cut, pytest.raises(UserError, match="cut off or damaged"):
        predictor.predict(cut)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8, 2), np.uint8), np.zeros((0, 8), np.uint8), np.zeros(8, np.uint8), None, 3]
)
def test_what_is_no_image_is_told(predictor, image):
    with pytest.raises(UserError, match="this is no image"):
        predictor.predict([image])


def test_a_bad_file_is_told_with_its_name(predictor, files, tmp_path):
    (tmp_path / "broken.png").write_bytes(files[0].read_bytes()[:40])
    for bad in (tmp_path / "broken.png", tmp_path / "nowhere.png"):
        with pytest.raises(UserError, match="this image can't be read") as caught:
            predictor.predict([files[0], bad])
        assert caught.value.where == str(bad)


def test_a_stream_keeps_order_compiles_once_and_reads_little_ahead(run, files):
    fresh, asked = vit.load(run), 0

    def endless():
        nonlocal asked
        for i in itertools.count():
            asked += 1
            yield b"no image" if i % 7 == 3 else files[i % 50]

    expected = [result.label for result in fresh.predict(files[:50])]
    fresh = vit.load(run)
    for i, (image, result) in enumerate(itertools.islice(fresh.stream(endless()), 200)):
        assert asked <= i + 4 * fresh.batch_size() + 9
        if i % 7 == 3:
            assert isinstance(result, BadImage)
        else:
            assert (image, result.label) == (files[i % 50], expected[i % 50])
    assert fresh._classify._cache_size() == 1


def test_a_stream_of_bad_files_alone(predictor):
    results = list(predictor.stream([b"no image"] * 100))
    assert len(results) == 100
    assert all(isinstance(result, BadImage) for _, result in results)


def test_the_batch_is_the_runs_or_what_fits(run, monkeypatch):
    predictor = vit.load(run)
    assert predictor.batch_size() == predictor.batch_size(attention=True) == 16
    monkeypatch.setattr(module, "ROOM", 1.0)
    assert predictor.batch_size() == predictor._mesh.size
    assert len(predictor.predict([np.zeros((8, 8), np.uint8)] * 20)) == 20


def test_attention_is_the_reports(run, predictor, files):
    results = predictor.predict(files[:12], attention=True)
    np.testing.assert_allclose(probabilities(results), probabilities(predictor.predict(files[:12])), atol=1e-6)
    batch = {"image": jnp.stack([Digits("test")[i]["image"] for i in range(12)])}
    graph = nnx.graphdef(nnx.eval_shape(lambda: predictor.trained.task.build(nnx.Rngs(0))))
    _, out = merge(graph, predictor._params)(predictor._prepare(batch, None)["image"], attention=True)
    rollout, last = maps("mean", out)
    np.testing.assert_allclose(np.stack([r.attention for r in results]), rollout, atol=1e-5)
    np.testing.assert_allclose(np.stack([r.heads for r in results]).mean(axis=1), last, atol=1e-5)
    first = [result for _, result in predictor.stream(files[:12], block=0)]
    assert first[0].heads.shape == (2, 4, 4)
    assert not np.allclose(first[0].heads, results[0].heads)


def test_other_checkpoints(run, files):
    last, best, first = (vit.load(str(run), which) for which in ("last", "best", "0"))
    assert [p.trained.step for p in (last, best, first)] == [3, 0, 0]
    assert not np.allclose(probabilities(last.predict(files[:2])), probabilities(best.predict(files[:2])))
    with pytest.raises(UserError, match="there is no trained model here"):
        vit.load(run / "nowhere")


@pytest.mark.parametrize("size", [0, 16])
def test_a_prepared_set_written_as_files_is_predicted_as_it_is_evaluated(tmp_path, monkeypatch, size):
    cifar = prepare_module.CIFARS["cifar10"]
    small = replace(cifar, records=dict.fromkeys(cifar.records, 20))
    monkeypatch.setitem(prepare_module.CIFARS, "cifar10", small)
    prepare_module.prepare("cifar10", tmp_path / "sets", pack(tmp_path / "a.tar.gz", "cifar10", contents("cifar10")))
    data = TfdsData(dir=str(tmp_path / "sets"), train="train[:80]", val="train[80:]", size=size, stream=bool(size))
    run = tiny_run(tmp_path / "run", Config(batch_size=8, data=data, model=replace(MODEL, patch=4)))
    whole = Tfds(replace(data, size=0), "test")
    for i in range(len(whole)):
        Image.fromarray(whole[i]["image"]).save(tmp_path / f"{i:02d}.png")
    results = vit.load(run).predict(sorted(tmp_path.glob("*.png")))
    np.testing.assert_array_equal(probabilities(results), of_evaluation(run, "test"))
    assert results[0].class_names[3] == "name 3"


def test_a_folders_files_are_predicted_as_they_are_evaluated(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("кот", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(30):
            size = (*rng.integers(20, 90, 2), 3)
            ending = ("jpg", "png", "webp")[i % 3]
            Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(tmp_path / "photos" / name / f"{i:02d}.{ending}")
    data = FolderData(dir=str(tmp_path / "photos"), size=24)
    run = tiny_run(tmp_path / "run", Config(batch_size=8, data=data, model=replace(MODEL, patch=4)))
    model = open_run(run, "last")
    _, examples, source = evaluate_split(model, "test", Never())
    files = [source.listing.read(int(i)) for i in examples["id"]]
    results = vit.load(run).predict(files)
    np.testing.assert_array_equal(probabilities(results), model.task.probabilities(examples["outputs"]))
    assert set(results[0].class_names) == {"кот", "dog"}
