"""The HSTU model against the padded float64 NumPy model, and what it must not depend on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from dlrm_v3.model.hstu import build_model
from dlrm_v3.model.inputs import Vectors, cut_targets, split_inputs
from dlrm_v3.model.tasks import task_labels, task_loss
from tests.support import hstu_batches, reference_hstu
from tests.support.hstu_batches import CONFIG, ITEMS_PER_CATEGORY, MAX_LENGTH
from tests.support.processes import run
from tests.support.tape import Node

BATCHES = {
    "no history": ([0], [3]),
    "a history of one": ([1], [1]),
    "over several blocks": ([150], [9]),
    "many": ([5, 0, 1, 70, 3, 4, 63, 64], [2, 3, 1, 4, 1, 2, 1, 5]),
}
KEY = 77
GROUPS = dataclasses.replace(CONFIG, group_norm=True)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "fused"])
def fused(request) -> bool:
    if request.param:
        ended = run(["make", "--directory=dlrm_v3/hstu_op"], time_limit=900)
        assert ended.code == 0, ended.output[-3000:]
    return request.param


def forward(model, batch, *, key=None, multiple=1):
    inputs, vectors = hstu_batches.inputs_and_vectors(batch, model.config, multiple)
    key = None if key is None else tf.constant(key, tf.int64)
    return model(inputs, vectors, training=key is not None, dropout_key=key).numpy()


def gradients(model, batch, upstream, *, key=None, multiple=1, graph=False):
    """Logits, and gradients of their weighted sum by the names of weights and vectors."""
    inputs, vectors = hstu_batches.inputs_and_vectors(batch, model.config, multiple)
    key = None if key is None else tf.constant(key, tf.int64)

    def compute():
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            logits = model(inputs, vectors, training=key is not None, dropout_key=key)
            total = tf.reduce_sum(logits * tf.constant(upstream, tf.float32))
        sources = hstu_batches.weights(model)
        return logits, tape.gradient(total, {**sources, **vectors._asdict()})

    logits, found = tf.function(compute)() if graph else compute()
    return logits.numpy(), {name: gradient.numpy() for name, gradient in found.items()}


def reference(model, batch, upstream=None, *, key=None):
    """The same, by the reference."""
    items, categories, users = hstu_batches.tables(model.config)
    vectors = [Node(items[batch.items]), Node(categories), Node(users[batch.users])]
    weights = {name: Node(w.numpy()) for name, w in hstu_batches.weights(model).items()}
    logits = reference_hstu.logits(
        model.config, MAX_LENGTH, weights, batch, vectors, ITEMS_PER_CATEGORY, key
    )
    if upstream is None:
        return logits.value
    logits.backward(upstream)
    nodes = {**weights, **dict(zip(Vectors._fields, vectors))}
    return logits.value, {name: node.gradient for name, node in nodes.items()}


def upstream_of(batch):
    return np.random.default_rng(5).normal(size=(batch.targets.sum(), 2))


def agree(found, expected, tolerance=2e-5):
    """Whether arrays are equal to rounding of the largest value among them."""
    assert found.shape == expected.shape
    largest = max(np.abs(expected).max(initial=0), 1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("config", [CONFIG, GROUPS], ids=["layer norm", "group norm"])
def test_logits_and_gradients_are_those_of_the_reference(case, config, fused) -> None:
    batch = hstu_batches.random_batch(*BATCHES[case])
    model = hstu_batches.random_model(config, fused=fused)
    upstream = upstream_of(batch)
    logits, found = gradients(model, batch, upstream)
    expected_logits, expected = reference(model, batch, upstream)
    agree(logits, expected_logits)
    assert found.keys() == expected.keys()
    unused = set()
    if max(BATCHES[case][0]) < CONFIG.min_history_for_user:
        unused |= {"users", "user_kernel"}
    if max(BATCHES[case][0]) == 0:
        unused |= {"actions"}
    for name, gradient in found.items():
        assert expected[name].any() or name in unused, name
        agree(gradient, expected[name], 1e-4)


def test_with_dropout_and_in_a_graph_too(fused) -> None:
    batch = hstu_batches.random_batch(*BATCHES["many"])
    model = hstu_batches.random_model(fused=fused)
    upstream = upstream_of(batch)
    logits, found = gradients(model, batch, upstream, key=KEY, graph=True)
    expected_logits, expected = reference(model, batch, upstream, key=KEY)
    agree(logits, expected_logits)
    for name, gradient in found.items():
        agree(gradient, expected[name], 1e-4)
    assert np.abs(logits - forward(model, batch)).max() > 0.1
    assert np.abs(logits - forward(model, batch, key=KEY + 1)).max() > 0.1


def test_the_gradients_of_the_reference_are_its_finite_differences() -> None:
    batch = hstu_batches.random_batch([5, 0, 3], [2, 1, 2])
    items, categories, users = hstu_batches.tables()
    vectors = [items[batch.items], categories, users[batch.users]]
    weights = {
        name: w.numpy() for name, w in hstu_batches.weights(hstu_batches.random_model()).items()
    }
    values = {**weights, **dict(zip(Vectors._fields, vectors))}
    values = {name: value.astype(np.float64) for name, value in values.items()}
    upstream = upstream_of(batch)

    def logits(nodes):
        weights = {name: nodes[name] for name in nodes.keys() - set(Vectors._fields)}
        vectors = [nodes[name] for name in Vectors._fields]
        return reference_hstu.logits(
            CONFIG, MAX_LENGTH, weights, batch, vectors, ITEMS_PER_CATEGORY
        )

    nodes = {name: Node(value) for name, value in values.items()}
    logits(nodes).backward(upstream)
    generator = np.random.default_rng(8)
    for name, value in values.items():
        direction = generator.normal(size=value.shape)
        sums = []
        for step in (1e-5, -1e-5):
            moved = {**values, name: value + step * direction}
            found = logits({other: Node(array) for other, array in moved.items()})
            sums.append(np.sum(found.value * upstream))
        difference = (sums[0] - sums[1]) / 2e-5
        along = np.sum(nodes[name].gradient * direction)
        np.testing.assert_allclose(along, difference, rtol=1e-5, atol=1e-6, err_msg=name)


def test_xla_with_padding_changes_nothing() -> None:
    batch = hstu_batches.random_batch([5, 0, 3], [2, 1, 2])
    upstream = upstream_of(batch)
    logits, found = gradients(hstu_batches.random_model(), batch, upstream, key=KEY)
    compiled = hstu_batches.random_model(xla=True)
    for multiple in (1, 32):
        same_logits, same = gradients(compiled, batch, upstream, key=KEY, multiple=multiple)
        agree(same_logits, logits)
        for name, gradient in found.items():
            rows = len(gradient)  # those of padding tokens come behind
            agree(same[name][:rows], gradient, 1e-4)
            assert not same[name][rows:].any()


@pytest.mark.parametrize(("lengths", "words"), [(([40], [1]), "31 rows"), (([1], [11]), "10 cand")])
def test_xla_refuses_what_it_was_not_compiled_for(lengths, words) -> None:
    model = hstu_batches.random_model(xla=True)
    inputs, vectors = hstu_batches.inputs_and_vectors(hstu_batches.random_batch(*lengths))
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"up to {words}"):
        tf.function(lambda offsets: model(inputs._replace(offsets=offsets), vectors))(
            inputs.offsets
        )


def test_padding_changes_nothing(fused) -> None:
    batch = hstu_batches.random_batch(*BATCHES["many"])
    model = hstu_batches.random_model(fused=fused)
    upstream = upstream_of(batch)
    logits, found = gradients(model, batch, upstream, key=KEY)
    padded_logits, padded = gradients(model, batch, upstream, key=KEY, multiple=1000)
    agree(padded_logits, logits, 1e-6)
    for name, gradient in found.items():
        agree(padded[name][: len(gradient)], gradient, 1e-5)
        assert not padded[name][len(gradient) :].any()


def test_a_request_scores_alone_as_among_others(fused) -> None:
    """Also with dropout: what is dropped depends on the user and the step alone."""
    batch = hstu_batches.random_batch(*BATCHES["many"])
    model = hstu_batches.random_model(fused=fused)
    for key in (None, KEY):
        together = forward(model, batch, key=key)
        for order in ([3, 0, 1], [7, 6, 5, 4, 2]):
            found = forward(model, take_requests(batch, order), key=key)
            ends = np.cumsum(batch.targets)
            parts = [together[ends[b] - batch.targets[b] : ends[b]] for b in order]
            agree(found, np.concatenate(parts), 1e-5)


def take_requests(batch, order):
    """A batch of the given requests alone, in this order."""
    tokens = [np.arange(batch.offsets[b], batch.offsets[b + 1]) for b in order]
    ends = np.cumsum(batch.targets)
    candidates = np.concatenate([np.arange(ends[b] - batch.targets[b], ends[b]) for b in order])
    lengths = [len(of_request) for of_request in tokens]
    tokens = np.concatenate(tokens)
    return batch._replace(
        users=batch.users[order],
        items=batch.items[tokens],
        actions=batch.actions[tokens],
        times=batch.times[tokens],
        offsets=np.append(0, np.cumsum(lengths)).astype(np.int32),
        targets=batch.targets[order],
        ratings=batch.ratings[candidates],
        probabilities=batch.probabilities[candidates],
    )


def test_a_candidate_changes_no_other_candidates_score(fused) -> None:
    batch = hstu_batches.random_batch([70, 3], [5, 4])
    model = hstu_batches.random_model(fused=fused)
    before = forward(model, batch)
    items = batch.items.copy()
    items[71] = (items[71] + 25) % (hstu_batches.CATEGORIES * ITEMS_PER_CATEGORY)  # candidate 1
    after = forward(model, batch._replace(items=items))
    changed = np.abs(after - before).max(axis=1) > 1e-6
    assert changed.tolist() == [False, True, *[False] * 7]


def test_the_future_changes_no_past_state(fused) -> None:
    """Neither an event's item nor its action reaches keys and values of the rows before it."""
    batch = hstu_batches.random_batch([70, 6], [2, 1])
    model = hstu_batches.random_model(fused=fused)
    _, categories, users = (tf.constant(table) for table in hstu_batches.tables())

    def states(batch):
        inputs, _ = split_inputs(batch, ITEMS_PER_CATEGORY)
        items = hstu_batches.tables()[0][inputs.items]
        vectors = Vectors(tf.constant(items), categories, tf.gather(users, batch.users))
        return [kept.numpy() for kept in model.encode_history(inputs, vectors).kept]

    items, actions = batch.items.copy(), batch.actions.copy()
    items[66] = (items[66] + 25) % (hstu_batches.CATEGORIES * ITEMS_PER_CATEGORY)
    actions[66] = 31 - actions[66]
    for before, after in zip(states(batch), states(batch._replace(items=items, actions=actions))):
        changed = np.abs(after - before).max(axis=1) > 1e-6
        assert not changed[:67].any()  # rows: the user's, 66 events
        assert changed[67]
        assert not changed[71:].any()
    assert changed[68:71].all()  # in the last layer


@pytest.mark.parametrize("ends", [[19], [7, 8, 19], [1, 2, 19]])
def test_kept_keys_and_values_score_candidates_as_the_whole_does(ends, fused) -> None:
    batch = hstu_batches.random_batch(*BATCHES["many"])
    model = hstu_batches.random_model(fused=fused)
    items, categories, users = hstu_batches.tables()
    histories, targets = split_inputs(batch, ITEMS_PER_CATEGORY)
    state = model.encode_history(
        hstu_batches.tensors(histories),
        Vectors(
            *(tf.constant(x) for x in (items[histories.items], categories, users[batch.users]))
        ),
    )
    found = []
    for begin, end in zip([0, *ends], ends):
        part = cut_targets(targets, begin, end)
        vectors = Vectors(tf.constant(items[part.items]), tf.constant(categories), None)
        found.append(model.score_targets(state, part, vectors).numpy())
    agree(np.concatenate(found), forward(model, batch), 1e-5)


@pytest.mark.parametrize("lengths", [([], []), ([1], [0])], ids=["requests", "candidates"])
def test_without_any_there_are_no_logits_and_no_gradients(lengths, fused) -> None:
    batch = hstu_batches.random_batch(*lengths)
    model = hstu_batches.random_model(fused=fused)
    logits, found = gradients(model, batch, np.zeros((0, 2)), key=KEY)
    assert logits.shape == (0, 2)
    assert all(not gradient.any() for gradient in found.values())


@pytest.mark.parametrize(("dtype", "share"), [("mixed_bfloat16", 0.15), ("mixed_float16", 0.02)])
def test_mixed_precision_is_near(dtype, share, fused) -> None:
    batch = hstu_batches.random_batch(*BATCHES["many"])
    upstream = upstream_of(batch)
    logits, found = gradients(hstu_batches.random_model(), batch, upstream)
    near, near_gradients = gradients(
        hstu_batches.random_model(dtype=dtype, fused=fused), batch, upstream
    )
    assert near.dtype == np.float32
    agree(near, logits, share / 2)
    for name, gradient in found.items():
        assert near_gradients[name].dtype == np.float32
        error = np.linalg.norm(near_gradients[name] - gradient)
        assert error < share * np.linalg.norm(gradient) + 1e-3, name


def test_models_of_one_seed_are_equal_and_of_others_differ() -> None:
    build: dict = {"max_length": MAX_LENGTH, "dtype": "float32", "fused": False, "xla": False}
    one, same, other = (build_model(CONFIG, seed=seed, **build) for seed in (1, 1, 2))
    assert len(hstu_batches.weights(one)) == len(one.trainable_variables)
    for first, second, third in zip(*(m.trainable_variables for m in (one, same, other))):
        np.testing.assert_array_equal(first.numpy(), second.numpy())
        if np.ptp(first.numpy()) > 0:
            assert np.abs(first.numpy() - third.numpy()).max() > 0, first.name


def test_the_loss_is_that_of_its_formulas() -> None:
    logits = np.array([[0.5, 3.0], [-1.0, 4.5], [2.0, 0.0]])
    ratings = np.array([3.5, 3.25, 4.0])
    tasks = ("rating", "stars")
    labels = task_labels(ratings, tasks).numpy()
    assert labels.tolist() == [[1, 3.5], [0, 3.25], [1, 4]]
    probability = 1 / (1 + np.exp(-logits[:, 0]))
    of_rating = -np.log(np.where(labels[:, 0] == 1, probability, 1 - probability)).sum()
    of_stars = np.square(logits[:, 1] - ratings).sum()
    found = task_loss(tf.constant(logits, tf.float32), labels, tasks, 0.2, 6).numpy()
    np.testing.assert_allclose(found, 0.2 * (of_rating + of_stars) / 6, rtol=1e-6)


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected tasks out of rating, stars, found \['clicks'\]"
    ):
        hstu_batches.random_model(dataclasses.replace(CONFIG, tasks=("clicks",)))
