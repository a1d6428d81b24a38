"""The feature recipe: steps as scikit-learn has them, in the graph of every family."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError
from sklearn import decomposition, preprocessing
from sklearn.model_selection import KFold, PredefinedSplit, StratifiedKFold
from sklearn.utils import murmurhash3_32

from app.core.errors import AimassError, InvalidData, InvalidSpec
from app.core.signature import Column, Signature, Tensor
from app.specs.features import AnyStep, FeatureSpec
from workers.export.runtime import predict
from workers.features import stage
from workers.features.recipe import Recipe, fit_recipe
from workers.learning import LearningData, Part

MakeJob = Callable[..., Any]
STEP: TypeAdapter[Any] = TypeAdapter(AnyStep)
RNG = np.random.default_rng(3)
N = 300
CITY = RNG.choice(["Oslo", "Rome", "Wien", ""], N, p=[0.5, 0.3, 0.1, 0.1])
SIZE = RNG.choice(["S", "M", "L"], N)
X = np.stack([RNG.lognormal(1, 1, N), RNG.normal(5, 3, N), RNG.integers(0, 4, N)], axis=1).astype(np.float32)
X[::7, 1] = np.nan
Y = ((CITY == "Oslo") + (X[:, 0] > 3) + RNG.normal(0, 0.5, N) > 1).astype(np.int64)
HELD = {
    "numeric": np.asarray([[1e6, np.nan, -3], [-0.5, 2, 1], [np.nan, -40, 9]], np.float32),
    "categorical": np.asarray([["Rome", "L"], ["Atlantis", "S"], ["", "XL"]], object),
}
DATES = [datetime(1899, 12, 31, 23, tzinfo=UTC), datetime(2000, 2, 29, 13, tzinfo=UTC),
         datetime(1900, 3, 1, tzinfo=UTC), datetime(2100, 12, 31, 1, tzinfo=UTC)]  # fmt: skip


@pytest.fixture
def data() -> LearningData:
    columns = (
        Column("income", "number", "numeric", 0), Column("age", "number", "numeric", 1),
        Column("rooms", "integer", "numeric", 2), Column("city", "category", "categorical", 0),
        Column("size", "category", "categorical", 1),
    )  # fmt: skip
    tensors = (Tensor("numeric", "FP32", (-1, 3)), Tensor("categorical", "BYTES", (-1, 2)))
    output = (Tensor("probabilities", "FP32", (-1, 2)),)
    inputs = {"numeric": X, "categorical": np.stack([CITY, SIZE], axis=1).astype(object)}
    signature = Signature("classification", tensors, output, columns, ("no", "yes"))
    return LearningData(signature, Part(inputs, Y), Part(HELD, np.zeros(3, np.int64)))


def fitted(data: LearningData, *steps: dict[str, Any]) -> tuple[Recipe, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The recipe, and training rows and held rows by column after it; the whole graph agrees with the single steps."""
    recipe, made = fit_recipe([STEP.validate_python(step) for step in steps], data)
    served = recipe.transform(data.validation.inputs, 1)
    for name, value in made.validation.inputs.items():
        if value.dtype == object:
            assert value.tolist() == served[name].tolist()
        else:
            np.testing.assert_array_equal(value, served[name])
    one_by_one = [recipe.transform({k: v[[i]] for k, v in data.validation.inputs.items()}, 1) for i in range(3)]
    for name in served:
        rows = np.concatenate([row[name] for row in one_by_one])
        assert rows.tolist() == served[name].tolist() or np.array_equal(rows, served[name], equal_nan=True)
    parts = [
        {c.name: part.inputs[c.tensor][:, c.index] for c in recipe.signature.columns}
        for part in (made.train, made.validation)
    ]
    return recipe, parts[0], parts[1]


def test_numbers_are_clipped_where_asked(data: LearningData):
    _, _, held = fitted(data, {"step": "clip", "columns": ["rooms"], "low": 0, "high": 3})
    assert held["rooms"].tolist() == [0, 1, 3]
    recipe, rows, held = fitted(data, {"step": "clip", "columns": ["age"], "iqr": 1.5})
    low, high = np.nanquantile(X[:, 1].astype(float), [0.25, 0.75])
    assert np.nanmin(rows["age"]) == pytest.approx(max(low - 1.5 * (high - low), np.nanmin(X[:, 1])))
    assert held["age"][2] == pytest.approx(low - 1.5 * (high - low))
    outside = (X[:, 1] < low - 1.5 * (high - low)) | (X[:, 1] > high + 1.5 * (high - low))
    assert recipe.report[0]["clipped"].get("age", 0) == outside.sum()
    _, rows, _ = fitted(data, {"step": "clip", "columns": ["income"], "quantiles": [0.1, 0.9]})
    assert rows["income"].max() == pytest.approx(np.quantile(X[:, 0], 0.9))


def test_gaps_are_filled_and_flagged(data: LearningData):
    recipe, rows, held = fitted(data, {"step": "impute", "flag": True})
    assert held["age"][0] == np.float32(np.nanmedian(X[:, 1].astype(float)))
    assert held["age missing"].tolist() == [1, 0, 0]
    assert np.isnan(held["income"][2])  # training rows have no gap there: left to the family
    assert recipe.report[0]["filled"] == {"age": np.isnan(X[:, 1]).sum()}
    _, rows, held = fitted(data, {"step": "impute", "strategy": "most_frequent", "columns": ["city", "rooms"]})
    assert (held["city"][2], (rows["city"] == "").sum()) == ("Oslo", 0)
    _, _, held = fitted(data, {"step": "impute", "strategy": "constant", "value": "nowhere"})
    assert held["city"].tolist() == ["Rome", "Atlantis", "nowhere"]


@pytest.mark.parametrize(
    ("method", "peer"),
    [
        ("standard", preprocessing.StandardScaler()), ("min_max", preprocessing.MinMaxScaler()),
        ("robust", preprocessing.RobustScaler()), ("yeo_johnson", preprocessing.PowerTransformer()),
    ],
)  # fmt: skip
def test_numbers_are_scaled_as_scikit_learn_does_it(data: LearningData, method: str, peer: Any):
    _, rows, held = fitted(data, {"step": "scale", "method": method})
    peer.fit(X.astype(np.float64))
    for found, x in ((rows, X), (held, HELD["numeric"])):
        ours = np.stack([found[name] for name in ("income", "age", "rooms")], axis=1)
        np.testing.assert_allclose(ours, peer.transform(x.astype(np.float64)), rtol=1e-6, atol=1e-6)


def test_logarithms_and_what_has_none(data: LearningData):
    _, rows, held = fitted(data, {"step": "scale", "method": "log1p", "columns": ["income", "rooms"]})
    np.testing.assert_allclose(rows["income"], np.log1p(X[:, 0]), rtol=1e-6)
    assert np.isnan(held["rooms"][0])
    with pytest.raises(InvalidData, match="use yeo_johnson") as caught:
        fitted(data, {"step": "scale", "method": "log1p"})
    assert caught.value.errors[0].loc == ("features", "steps", 0, "method")


def test_bins_are_those_of_scikit_learn(data: LearningData):
    x = X[:, [0]].astype(np.float64)
    for strategy, how in (("quantile", {"quantile_method": "averaged_inverted_cdf"}), ("uniform", {})):
        peer = preprocessing.KBinsDiscretizer(5, encode="ordinal", strategy=strategy, **how).fit(x)
        step = {"step": "bin", "columns": ["income", "age"], "bins": 5, "strategy": strategy}
        _, rows, held = fitted(data, step)
        assert rows["income"].tolist() == peer.transform(x)[:, 0].tolist()
        assert (held["income"][0], np.isnan(held["age"][0])) == (4, True)
        _, rows, held = fitted(data, {**step, "output": "category"})
        assert rows["income"].tolist() == [str(int(b)) for b in peer.transform(x)[:, 0]]
        assert held["age"][0] == ""


def test_bins_are_counted_in_small_batches(data: LearningData, monkeypatch: pytest.MonkeyPatch):
    """Every number is compared with every edge: two columns of four edges are eight cells a row."""
    batches = []

    def counted(session: Any, inputs: Any, batch: int) -> Any:
        batches.append(batch)
        return predict(session, inputs, batch)

    monkeypatch.setattr(stage, "predict", counted)
    monkeypatch.setattr(stage, "_CELLS", 80)
    step = {"step": "bin", "columns": ["income", "age"], "bins": 5}
    recipe, rows, _ = fitted(data, step)
    assert batches[0] == 10
    session = recipe.session(1)
    served = Mock(run=Mock(side_effect=session.run))
    recipe.run(served, data.train.inputs)
    assert served.run.call_count == N / 10
    monkeypatch.undo()
    assert rows["income"].tolist() == fitted(data, step)[1]["income"].tolist()


def test_categories_become_columns_places_and_buckets(data: LearningData):
    recipe, rows, held = fitted(data, {"step": "one_hot", "columns": ["city"], "max_categories": 2})
    assert recipe.report[0] | {"categories": {"city": 3}, "columns_before": 5, "columns_after": 6} == recipe.report[0]
    assert [held[f"city={c}"].tolist() for c in ("Oslo", "Rome")] == [[0, 0, 0], [1, 0, 0]]
    assert rows["city=Oslo"].tolist() == (CITY == "Oslo").astype(float).tolist()
    recipe, _, held = fitted(data, {"step": "ordinal", "orders": {"size": ["S", "L"]}})
    assert held["size"][:2].tolist() == [1, 0]
    assert np.isnan(held["size"][2])
    assert recipe.report[0]["not_in_order"] == {"size": {"M": (SIZE == "M").sum()}}
    _, _, held = fitted(data, {"step": "hash", "buckets": 16})
    expected = [str(murmurhash3_32(c.encode(), 0, positive=True) % 16) for c in ("Rome", "Atlantis")]
    assert held["city"].tolist() == [*expected, ""]


def test_target_means_are_cross_fitted_in_training_rows_alone(data: LearningData):
    x = np.stack([CITY, SIZE], axis=1).astype(object)
    folds = StratifiedKFold(5, shuffle=True, random_state=42)
    peer = preprocessing.TargetEncoder(target_type="binary", cv=folds)
    crossed = peer.fit_transform(x, Y)
    _, rows, held = fitted(data, {"step": "target_encode"})
    np.testing.assert_allclose(np.stack([rows["city"], rows["size"]], axis=1), crossed, rtol=1e-6)
    np.testing.assert_allclose(
        np.stack([held["city"], held["size"]], axis=1), peer.transform(HELD["categorical"]), rtol=1e-6
    )
    # Of many categories that mean nothing, cross-fitted means tell nothing of a row's own target.
    noise = RNG.integers(0, 150, N).astype(str).astype(object)[:, None]
    inputs = {"numeric": X, "categorical": np.concatenate([noise, noise], axis=1)}
    loose = LearningData(data.signature, Part(inputs, Y), data.validation)
    _, rows, _ = fitted(loose, {"step": "target_encode", "columns": ["city"], "smooth": 0})
    assert abs(np.corrcoef(rows["city"], Y)[0, 1]) < 0.2


def test_target_means_need_as_many_rows_as_folds(data: LearningData):
    few = replace(
        data, signature=replace(data.signature, task="regression", classes=()),
        train=Part({name: x[:4] for name, x in data.train.inputs.items()}, np.arange(4.0)),
    )  # fmt: skip
    with pytest.raises(InvalidData, match="there are 4 training rows, and each fold needs one") as caught:
        fitted(few, {"step": "target_encode"})
    assert caught.value.errors[0].loc == ("features", "steps", 0, "folds")


def test_target_means_are_of_other_groups_where_the_split_is_by_groups(data: LearningData):
    groups = np.arange(N) % 5
    apart = replace(data, folds=lambda count: np.concatenate([groups % count, [0] * 3]))
    peer = preprocessing.TargetEncoder(target_type="binary", cv=PredefinedSplit(groups))
    crossed = peer.fit_transform(CITY.astype(object)[:, None], Y)[:, 0]
    rows = fitted(apart, {"step": "target_encode", "columns": ["city"]})[1]
    np.testing.assert_allclose(rows["city"], crossed, rtol=1e-6)


def test_target_means_of_several_classes_and_of_numbers(data: LearningData):
    x = np.stack([CITY, SIZE], axis=1).astype(object)
    three = np.where(SIZE == "L", 2, Y)
    signature = replace(data.signature, classes=("no", "yes", "large"))
    several = replace(data, signature=signature, train=Part(data.train.inputs, three))
    peer = preprocessing.TargetEncoder(target_type="multiclass", cv=StratifiedKFold(5, shuffle=True, random_state=42))
    crossed = peer.fit_transform(x, three)
    names = [f"{name} target {label}" for name in ("city", "size") for label in signature.classes]
    _, rows, held = fitted(several, {"step": "target_encode"})
    np.testing.assert_allclose(np.stack([rows[name] for name in names], axis=1), crossed, rtol=1e-6)
    served = peer.transform(HELD["categorical"])
    np.testing.assert_allclose(np.stack([held[name] for name in names], axis=1), served, rtol=1e-6, atol=1e-9)
    values = X[:, 0].astype(np.float64)
    numbers = replace(
        data, signature=replace(data.signature, task="regression", classes=()), train=Part(data.train.inputs, values)
    )
    peer = preprocessing.TargetEncoder(target_type="continuous", cv=KFold(5, shuffle=True, random_state=42))
    peer.fit(x, values)
    _, _, held = fitted(numbers, {"step": "target_encode", "columns": ["city"]})
    np.testing.assert_allclose(held["city"], peer.transform(HELD["categorical"])[:, 0], rtol=1e-6)


def test_dates_fall_into_their_parts():
    days = [(day - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(days=1) for day in DATES]
    x = np.asarray([*days, np.nan] * 8, np.float32)[:, None]
    signature = Signature(
        "classification", (Tensor("numeric", "FP32", (-1, 1)),), (), (Column("day", "number", "numeric"),), ("a", "b")
    )
    part = Part({"numeric": x}, np.zeros(len(x), np.int64))
    held = Part({"numeric": np.asarray([[-1e9], [days[1]], [np.nan]], np.float32)}, np.zeros(3, np.int64))
    parts = ["year", "quarter", "month", "day", "weekday", "day_of_year", "hour"]
    step = {"step": "date_parts", "columns": ["day"], "parts": parts, "keep": False}
    _, rows, out = fitted(LearningData(signature, part, held), step)
    told = np.stack([rows[f"day.{part}"] for part in parts], axis=1)[:5]
    assert told[:4].tolist() == [
        [d.year, (d.month + 2) // 3, d.month, d.day, d.weekday(), d.timetuple().tm_yday, d.hour] for d in DATES
    ]
    assert np.isnan(told[4]).all()
    assert [np.isnan(out["day.year"][0]), out["day.year"][1]] == [True, 2000]


def test_every_day_of_four_centuries_has_its_date():
    days = np.arange(-150_000, 20_000, 29, dtype=np.float32)[:, None]
    signature = Signature(
        "classification", (Tensor("numeric", "FP32", (-1, 1)),), (), (Column("day", "number", "numeric"),), ("a", "b")
    )
    part = Part({"numeric": days}, np.zeros(len(days), np.int64))
    step = STEP.validate_python({"step": "date_parts", "columns": ["day"], "parts": ["year", "month", "day",
                                 "day_of_year", "weekday"], "keep": False})  # fmt: skip
    _, made = fit_recipe([step], LearningData(signature, part, part))
    expected = [
        (d.year, d.month, d.day, d.timetuple().tm_yday, d.weekday())
        for d in (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=float(day)) for day in days[:, 0])
    ]
    assert made.train.inputs["numeric"].tolist() == [list(map(float, row)) for row in expected]


def test_products_are_added(data: LearningData):
    _, rows, held = fitted(data, {"step": "interact", "pairs": [["income", "rooms"]]})
    assert held["income*rooms"][:2].tolist() == [-3e6, -0.5]
    _, rows, held = fitted(data, {"step": "polynomial", "columns": ["income", "rooms"], "degree": 3})
    peer = preprocessing.PolynomialFeatures(3, include_bias=False).fit(X[:, [0, 2]])
    expected = peer.transform(X[:, [0, 2]].astype(float))
    ours = np.stack([rows[n] for n in ("income", "rooms", "income^2", "income*rooms", "rooms^2", "income^3",
                                       "income^2*rooms", "income*rooms^2", "rooms^3")], axis=1)  # fmt: skip
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_a_number_beyond_32_bits_counts_as_missing(data: LearningData):
    far = {**HELD, "numeric": np.asarray([[1e20, 1, 1], [1, 1, 1], [1, 1, 1]], np.float32)}
    beyond = LearningData(data.signature, data.train, Part(far, np.zeros(3, np.int64)))
    _, _, held = fitted(beyond, {"step": "polynomial", "columns": ["income"]})
    assert np.isnan(held["income^2"][0])
    assert held["income^2"][1] == 1


def test_projections_are_those_of_scikit_learn(data: LearningData):
    x = X.astype(np.float64)
    x = np.where(np.isnan(x), np.nanmean(x, axis=0), x)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    recipe, rows, _ = fitted(data, {"step": "pca", "variance": 0.7})
    peer = decomposition.PCA(0.7).fit(scaled)
    ours = np.stack([rows[f"pca_{i + 1}"] for i in range(peer.n_components_)], axis=1)
    np.testing.assert_allclose(ours, peer.transform(scaled), atol=1e-5)
    assert recipe.report[0]["variance_kept"] == pytest.approx(peer.explained_variance_ratio_.sum())
    assert [c.name for c in recipe.signature.columns] == [
        *(f"pca_{i + 1}" for i in range(ours.shape[1])),
        "city",
        "size",
    ]
    _, rows, _ = fitted(data, {"step": "svd", "components": 2})
    filled = np.nan_to_num(X.astype(np.float64))
    expected = decomposition.TruncatedSVD(2, algorithm="arpack", random_state=0).fit_transform(filled)
    np.testing.assert_allclose(np.stack([rows["svd_1"], rows["svd_2"]], axis=1), expected, rtol=1e-4, atol=1e-4)


def test_the_columns_that_tell_most_are_kept(data: LearningData):
    for by in ("mutual_information", "f"):
        recipe, rows, _ = fitted(data, {"step": "select", "by": by, "k": 1})
        assert set(rows) == {"income", "city", "size"}
        assert sorted(recipe.report[0]["dropped"]) == ["age", "rooms"]
    _, rows, _ = fitted(data, {"step": "select", "by": "variance", "threshold": 2.0})
    assert set(rows) == {"income", "age", "city", "size"}


def test_steps_follow_one_another(data: LearningData):
    recipe, rows, _ = fitted(
        data,
        {"step": "impute", "flag": True},
        {"step": "one_hot", "columns": ["city"]},
        {"step": "interact", "pairs": [["income", "city=Oslo"], ["age", "age missing"]]},
        {"step": "select", "by": "f", "k": 2, "columns": ["income", "age", "income*city=Oslo"]},
        {"step": "scale"},
    )
    assert [line["columns_after"] for line in recipe.report] == [6, 8, 10, 9, 9]
    assert rows["income*city=Oslo"].mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(InvalidSpec, match="'city' is not a used column of categories") as caught:
        fitted(data, {"step": "one_hot", "columns": ["city"]}, {"step": "hash", "columns": ["city"]})
    assert caught.value.errors[0].loc == ("features", "steps", 1, "columns", 0)


@pytest.mark.parametrize(
    ("step", "where"),
    [
        ({"step": "one_hot", "columns": ["age"]}, ("columns", 0)),
        ({"step": "impute", "columns": ["age", "city"]}, ("columns", 1)),
        ({"step": "impute", "strategy": "constant", "value": "x", "columns": ["age"]}, ("columns", 0)),
        ({"step": "interact", "pairs": [["age", "city"]]}, ("pairs", 0, 1)),
        ({"step": "ordinal", "orders": {"size": ["1", "2"]}}, ("orders", "size")),
        ({"step": "ordinal", "orders": {"age": ["1", "2"]}}, ("orders", "age")),
        ({"step": "pca", "components": 4}, ("components",)),
        ({"step": "select", "by": "variance", "threshold": 1e9}, ("threshold",)),
        ({"step": "date_parts", "columns": ["city"]}, ("columns", 0)),
    ],
)
def test_a_step_that_does_not_suit_its_columns_is_named(
    data: LearningData, step: dict[str, Any], where: tuple[Any, ...]
):
    with pytest.raises(AimassError) as caught:
        fitted(data, step)
    assert isinstance(caught.value, InvalidSpec | InvalidData)
    assert caught.value.errors[0].loc == ("features", "steps", 0, *where)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"step": "clip"}, "give bounds"),
        ({"step": "clip", "low": 2, "high": 1}, "swap them"),
        ({"step": "clip", "low": 2, "iqr": 1.5}, "give bounds"),
        ({"step": "impute", "value": 3}, "goes with strategy constant"),
        ({"step": "pca"}, "components or variance"),
        ({"step": "select", "by": "f"}, "k with the others"),
        ({"step": "interact", "columns": ["a"], "pairs": [["a", "b"]]}, "columns or pairs"),
        ({"step": "ordinal", "orders": {"a": ["x", "x"]}}, "twice"),
        ({"step": "shine"}, "step"),
    ],
)
def test_a_step_that_contradicts_itself_is_refused_before_it_is_queued(step: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        FeatureSpec.model_validate({"steps": [step]})


def test_the_profile_is_enough_to_refuse_a_column():
    types = {"age": "number", "city": "category", "day": "datetime", "y": "category"}

    def check(*steps: dict[str, Any], **more: Any) -> None:
        FeatureSpec.model_validate({"steps": steps, **more}).check_steps(types, "y")

    check({"step": "ordinal", "orders": {"city": ["a", "b"]}}, {"step": "scale", "columns": ["city"]})
    check({"step": "one_hot"}, {"step": "scale", "columns": ["city=Oslo"]})
    check({"step": "date_parts", "columns": ["day"]}, types={"day": "number"})
    for step, words in (
        ({"step": "scale", "columns": ["city"]}, "set features.types to 'number'"),
        ({"step": "hash", "columns": ["age"]}, "set features.types to 'category'"),
        ({"step": "date_parts", "columns": ["day"]}, "set features.types to 'number'"),
        ({"step": "impute", "columns": ["y"]}, "is the target"),
    ):
        with pytest.raises(InvalidSpec, match=words):
            check(step)
