"""What the tests let a process with one of Keras' backends compute. All take and return NumPy arrays."""

import os
from itertools import islice
from pathlib import Path

import numpy as np

from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.weights import cut_vocabulary, pad_vocabulary


def cache_variables(cache):
    """Most tests compile what another has compiled before."""
    return {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def start_backend(name, cache, devices=1):
    os.environ |= cache_variables(cache)
    if devices > 1:
        # JAX takes the cores for so many devices.
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    select_backend(name)


def network_logits(architecture, weights, token_ids, padded=True, **options):
    from keras import ops

    from gpt2_trainer.model.network import Network

    weights = pad_vocabulary(weights, architecture) if padded else weights
    return ops.convert_to_numpy(Network(architecture=architecture, **options).logits(weights, token_ids))


def train_steps(architecture, weights, options, batches, with_slots=False, **network_options):
    """Trains a few steps. Returns the weights, and loss, gradient norm and learning rate of each step.

    With slots, it also returns the slots after each step, and whether each step was made.
    """
    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from gpt2_trainer.training.stepper import create_stepper

    network = Network(architecture=architecture, precision=options.precision, **network_options)
    stepper = create_stepper(TrainingStep(network, options), pad_vocabulary(weights, architecture), None)
    results, slots = [], []
    for number, batch in enumerate(batches):
        results.append(stepper.train(number, *batch))
        if with_slots:
            slots.append(cut_vocabulary(stepper.slots(), architecture))
    figures = [(float(item.loss), float(item.gradient_norm), float(item.learning_rate)) for item in results]
    trained = cut_vocabulary(stepper.weights(), architecture)
    return (trained, figures, slots, [bool(item.made) for item in results]) if with_slots else (trained, figures)


def continued_training(architecture, weights, options, batches, cut):
    """Weights after a training's steps, and after those of one that goes on from what was saved after `cut` steps."""
    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from gpt2_trainer.training.stepper import create_stepper

    network = Network(
        architecture=architecture, precision=options.precision, rematerialise=options.memory_saving_gradients
    )
    step, weights = TrainingStep(network, options), pad_vocabulary(weights, architecture)
    stepper, found = create_stepper(step, weights, None), []
    for number, batch in enumerate(batches):
        if number == cut:
            resumed = create_stepper(step, stepper.weights(), stepper.slots())
        stepper.train(number, *batch)
    for number, batch in enumerate(batches[cut:], start=cut):
        resumed.train(number, *batch)
    found = [cut_vocabulary(item.weights(), architecture) for item in (stepper, resumed)]
    return tuple(found)


def dropout_masks(options, step, part, shapes):
    """What values of 1 become at places of layers, {(place, layer): shape}, in a micro-batch of a step."""
    from keras import ops

    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from trainer_support.data import small_architecture

    dropout = TrainingStep(Network(architecture=small_architecture()), options)._dropout(step, part)
    return {
        (place, layer): ops.convert_to_numpy(dropout.apply(ops.ones(shape, options.precision), place, layer))
        for (place, layer), shape in shapes.items()
    }


def random_operations(architecture, weights, options, batch):
    """How many operations of a compiled training step draw random numbers."""
    import keras

    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from gpt2_trainer.training.stepper import create_stepper

    step = TrainingStep(Network(architecture=architecture), options)
    stepper = create_stepper(step, pad_vocabulary(weights, architecture), None)
    if keras.config.backend() == "jax":
        lowered = stepper._update.lower(stepper._trained, stepper._slots, stepper._frozen, np.int32(0), *batch)
        return lowered.as_text().count("threefry")
    graph = stepper._train.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return sum("Random" in node.op for node in nodes)


def validation_losses(architecture, weights, options, inputs, targets, **network_options):
    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from gpt2_trainer.training.stepper import create_stepper

    step = TrainingStep(Network(architecture=architecture, **network_options), options)
    return create_stepper(step, pad_vocabulary(weights, architecture), None).validate(inputs, targets)


def step_layouts(architecture, weights, options):
    """Devices, and the shape of the part that each of them has, of every weight and slot after a step."""
    from gpt2_trainer.model.network import Network
    from gpt2_trainer.training.step import TrainingStep
    from gpt2_trainer.training.stepper import create_stepper

    network = Network(architecture=architecture, precision=options.precision)
    stepper = create_stepper(TrainingStep(network, options), pad_vocabulary(weights, architecture), None)
    batch = np.zeros((2, options.batch_size, options.context_length), np.int32)
    stepper.train(0, *batch)
    tensors = stepper.tensors() | stepper._slots
    return {name: (len(value.devices()), value.sharding.shard_shape(value.shape)) for name, value in tensors.items()}


def learning_rates(options, steps):
    from gpt2_trainer.training.schedule import learning_rate

    return [float(learning_rate(options, step)) for step in steps]


def first_slots(options, weights):
    from gpt2_trainer.training import optimizer

    return optimizer.first_slots(options, weights)


def guard_decisions(options, before, asked):
    """Whether updates of losses and norms are made, after others that were."""
    from keras import ops

    from gpt2_trainer.training import guard

    def tensors(values):
        return [ops.convert_to_tensor(np.float32(value)) for value in values]

    state = _tensors(guard.first_guard())
    for values in before:
        state = guard.next_guard(state, *tensors(values))
    return [bool(guard.is_harmless(options, state, *tensors(values))) for values in asked]


def _tensors(values):
    from keras import ops

    return {name: ops.convert_to_tensor(value) for name, value in values.items()}


def _arrays(tensors):
    from keras import ops

    return {name: ops.convert_to_numpy(value) for name, value in tensors.items()}


def optimizer_updates(options, weights, gradients, elements=None):
    """Updates weights with given gradients at the options' learning rate."""
    from gpt2_trainer.training import optimizer

    rate, elements = options.learning_rate, elements or {name: value.size for name, value in weights.items()}
    state = _tensors(weights), _tensors(optimizer.first_slots(options, weights))
    for step, gradient in enumerate(gradients):
        state = optimizer.update(options, rate, np.int32(step), True, *state, _tensors(gradient), elements)
    return _arrays(state[0])


def after_a_skipped_update(options, weights, gradients):
    """Weights and slots after an update that made slots, and after one more that is not to be made."""
    from gpt2_trainer.training import optimizer

    elements = {name: value.size for name, value in weights.items()}
    harmful = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    state = _tensors(weights), _tensors(optimizer.first_slots(options, weights))
    before = optimizer.update(options, 0.1, np.int32(0), True, *state, _tensors(gradients), elements)
    after = optimizer.update(options, 0.1, np.int32(1), False, *before, _tensors(harmful), elements)
    return [_arrays(weights | slots) for weights, slots in (before, after)]


def copies_of_an_update(options, shape):
    """How many copies of a weight's size XLA makes for an update on TensorFlow of what is kept in variables."""
    import tensorflow as tf

    from gpt2_trainer.training import optimizer

    # The compiler's text is had for what could be random alone.
    tf.random.set_seed(0)
    weight = {"weight": np.ones(shape, np.float32)}
    variables = {name: tf.Variable(value) for name, value in (weight | optimizer.first_slots(options, weight)).items()}

    def update(made, gradient):
        slots = {name: variable.value() for name, variable in variables.items()}
        weights, gradients = {"weight": slots.pop("weight")}, {"weight": gradient}
        elements = {"weight": weight["weight"].size}
        new = optimizer.update(options, 0.1, tf.constant(1), made, weights, slots, gradients, elements)
        for name, value in (new[0] | new[1]).items():
            variables[name].assign(value)

    graph = tf.function(update, jit_compile=True, autograph=False)
    program = graph.experimental_get_compiler_ir(tf.constant(True), tf.ones(shape))(stage="optimized_hlo")
    lines = program.splitlines()
    assert sum("ROOT" in line and "tuple" in line for line in lines) == 1
    return sum(f"f32[{shape[0]},{shape[1]}]" in line and " copy(" in line for line in lines)


def clipped(gradients, greatest):
    from gpt2_trainer.training.optimizer import clip

    tensors, norm = clip(_tensors(gradients), greatest)
    return _arrays(tensors), float(norm)


def generated(architecture, weights, prompt, samples, count, sampling, seed, precision="float32"):
    """Tokens [samples, count] of the decoder."""
    from gpt2_trainer.generation.decoder import Decoder
    from gpt2_trainer.model.network import Network

    decoder = Decoder(Network(architecture=architecture, precision=precision))
    tokens = decoder.generate(decoder.load(weights), prompt, samples, sampling, seed)
    return np.stack(list(islice(tokens, count)), axis=1)


def paired_products(rows, matrix):
    """Products of rows, one at a time, and a matrix of bfloat16 bit patterns; bytes that the program takes besides."""
    import jax
    import ml_dtypes

    from gpt2_trainer.model import paired

    pairs = paired.pair(jax.numpy.asarray(matrix.view(ml_dtypes.bfloat16)))
    if pairs is None:
        return None
    program = jax.jit(paired.multiply, static_argnums=2).lower(rows[0], pairs, matrix.shape[1]).compile()
    return [np.asarray(program(row, pairs)) for row in rows], program.memory_analysis().temp_size_in_bytes


def drawn(logits, count, temperature, top_k, top_p):
    """Tokens that so many samples of seed 0 draw at the first position."""
    from keras import ops

    from gpt2_trainer.generation.noise import stream_keys
    from gpt2_trainer.generation.sampling import draw

    seed = ops.zeros((2,), "uint32")
    keys = stream_keys((seed[0], seed[1]), np.arange(count, dtype=np.int32))
    return ops.convert_to_numpy(draw(ops.convert_to_tensor(logits), keys, np.int32(0), temperature, top_k, top_p))


def encrypted(key, counter):
    """Threefry of words, as lists of Python's integers."""
    from keras import ops

    from gpt2_trainer.generation.noise import threefry

    words = [ops.convert_to_tensor(np.asarray([word], np.uint32)) for word in (*key, *counter)]
    return [int(ops.convert_to_numpy(word)[0]) for word in threefry(tuple(words[:2]), tuple(words[2:]))]


def served_logits(folder, token_ids):
    import tensorflow as tf

    model = tf.saved_model.load(str(Path(folder)))
    return model.signatures["logits"](token_ids=tf.constant(token_ids, tf.int32))["logits"].numpy()


def served_text(folder, prompts, max_tokens, temperature=0.0, top_k=0, top_p=1.0, seed=0):
    import tensorflow as tf

    generate = tf.saved_model.load(str(Path(folder))).signatures["generate"]
    answer = generate(
        token_ids=tf.constant(prompts, tf.int32),
        max_tokens=tf.constant(max_tokens, tf.int32),
        temperature=tf.constant(temperature, tf.float32),
        top_k=tf.constant(top_k, tf.int32),
        top_p=tf.constant(top_p, tf.float32),
        seed=tf.constant(seed, tf.int64),
    )
    return answer["token_ids"].numpy(), answer["lengths"].numpy()


def write_served(folder, architecture, weights):
    """Writes a SavedModel alone."""
    from gpt2_trainer.formats.saved_model import ServedModel, write_saved_model

    write_saved_model(Path(folder), ServedModel(architecture, weights))


def served_samples(folder, cases):
    """What `generated_cases` returns, from a SavedModel: the signature `generate` where a case lets it."""
    import tensorflow as tf

    signatures = tf.saved_model.load(str(Path(folder))).signatures
    texts = []
    for prompts, samples, count, sampling, seed in cases:
        inputs = {
            "token_ids": tf.constant(np.repeat(prompts, samples, axis=0), tf.int32),
            "max_tokens": tf.constant(count, tf.int32),
            "temperature": tf.constant(sampling.temperature, tf.float32),
            "top_k": tf.constant(sampling.top_k, tf.int32),
            "top_p": tf.constant(sampling.top_p, tf.float32),
            "seed": tf.constant(seed, tf.int64),
        }
        if samples > 1 or sampling.penalizes:
            inputs |= {
                "samples": tf.constant(list(range(samples)) * len(prompts), tf.int32),
                "repetition_penalty": tf.constant(sampling.repetition_penalty, tf.float32),
                "no_repeat_ngram_size": tf.constant(sampling.no_repeat_ngram_size, tf.int32),
            }
            made = signatures["generate_samples"](**inputs)
        else:
            made = signatures["generate"](**inputs)
        rows = zip(made["token_ids"].numpy().tolist(), made["lengths"].numpy().tolist(), strict=True)
        texts.append([row[:length] for row, length in rows])
    return texts


def generated_cases(architecture, weights, cases, precision="float32"):
    """Token ids of each sample up to the end token, prompt after prompt, for each case.

    A case is prompts of one length, samples, tokens, SamplingOptions and seed.
    """
    from gpt2_trainer.generation.decoder import Decoder
    from gpt2_trainer.model.network import Network

    decoder = Decoder(Network(architecture=architecture, precision=precision))
    loaded, end = decoder.load(weights), architecture.end_token_id
    texts = []
    for prompts, samples, count, sampling, seed in cases:
        steps = islice(decoder.generate_batch(loaded, prompts, samples, sampling, seed), count)
        rows = np.stack(list(steps), axis=2).reshape(-1, count).tolist()
        texts.append([row[: row.index(end)] if end in row else row for row in rows])
    return texts


def penalized(logits, history, length, penalty, ngram_size):
    from keras import ops

    from gpt2_trainer.generation.penalties import penalize

    logits, history = ops.convert_to_tensor(logits), ops.convert_to_tensor(history)
    return ops.convert_to_numpy(penalize(logits, history, np.int32(length), np.float32(penalty), np.int32(ngram_size)))


def write_openai_checkpoint(folder, variables):
    """A TensorFlow checkpoint with named variables, as OpenAI's tools wrote them."""
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, value in variables.items():
            tf.compat.v1.get_variable(name, initializer=value)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(Path(folder) / "model.ckpt"), write_meta_graph=False)


def run_job(module, function, request_type, request, folder, job_id, **settings):
    """Runs a job function. Returns URI and properties of each output, or the error's type and text."""
    import importlib

    from gpt2.trainer.v1 import trainer_service_pb2
    from gpt2_common.errors import PipelineError
    from trainer_support.jobs import make_context

    context = make_context(Path(folder), job_id, **settings)
    message = getattr(trainer_service_pb2, request_type).FromString(request)
    try:
        outputs = getattr(importlib.import_module(module), function)(message, context)
    except PipelineError as error:
        return {"error": {"type": type(error).__name__, "message": str(error)}}
    return {item.name: {"uri": item.uri, "digest": item.digest, **item.properties} for item in outputs}


def import_from_memory(folder, root):
    """Imports a folder's files from fsspec's file system in memory, which behaves as object stores do."""
    import fsspec

    from gpt2.trainer.v1 import trainer_service_pb2

    memory, name = fsspec.filesystem("memory"), Path(folder).name if folder else "nothing"
    if folder:
        memory.put(folder, f"/{name}", recursive=True)
    request = trainer_service_pb2.ImportCheckpointRequest(uri=f"memory://{name}").SerializeToString()
    job = ("gpt2_trainer.jobs.import_checkpoint", "import_checkpoint", "ImportCheckpointRequest")
    return run_job(*job, request, root, f"import-{name}", allowed_roots=f"memory://{name}")


def reads_of_flipped(folder, name, most):
    """What a reader says to a model with one of the first bytes of a file changed, each in turn.

    Returns `refused`, `the same` where the weights are as before, or else what came, for each byte.
    """
    from gpt2_common.errors import InvalidRequest

    folder = Path(folder)
    if (folder / "hparams.json").is_file():
        from gpt2_trainer.formats.openai import read_openai

        def read():
            return read_openai(folder, None, "uri")
    else:
        from gpt2_trainer.formats.huggingface import read_huggingface

        def read():
            return read_huggingface(folder, "uri")

    content, (architecture, weights) = (folder / name).read_bytes(), read()
    outcomes = []
    for place in range(min(most, len(content))):
        flipped = content[place] ^ (1 << place % 8)
        (folder / name).write_bytes(content[:place] + bytes([flipped]) + content[place + 1 :])
        try:
            found, values = read()
        except InvalidRequest:
            outcomes.append("refused")
            continue
        same = found == architecture and all(np.array_equal(values[key], weights[key]) for key in weights)
        outcomes.append("the same" if same else f"other weights by a change of byte {place}")
    return outcomes


def gradients_both_ways(name, values, towards, **options):
    """Results and gradients of a function of the model: as it has them, and as differentiation of NumPy's way does.

    Returns:
        Two lists, each with the result and the gradients of the arguments.
    """
    import keras
    from keras import ops

    from gpt2_trainer.model import activations, backend

    def plain_norm(hidden, gain, bias):
        centred = hidden - ops.mean(hidden, axis=-1, keepdims=True)
        variance = ops.mean(ops.square(centred), axis=-1, keepdims=True) + options.get("epsilon", 1e-5)
        return centred / ops.sqrt(variance) * gain + bias

    def plain_shares(scores):
        return ops.softmax(ops.where(options["mask"], scores * np.float32(options["factor"]), -1e9), axis=-1)

    def plain_gelu(hidden, bias):
        inner = hidden + bias
        if options.get("exact"):
            return 0.5 * inner * (1 + ops.erf(inner / np.float32(np.sqrt(2))))
        return 0.5 * inner * (1 + ops.tanh(np.float32(np.sqrt(2 / np.pi)) * (inner + 0.044715 * inner**3)))

    exact, plain = {
        "norm": (activations.norm, plain_norm),
        "attention_shares": (activations.attention_shares, plain_shares),
        "gelu": (activations.gelu, plain_gelu),
        "linear": (backend.linear, ops.matmul),
    }[name]

    def ours(*values):
        return exact(*values, **options)

    def differentiated(function):
        if keras.config.backend() == "jax":
            import jax

            result, pull_back = jax.vjp(function, *map(ops.convert_to_tensor, values))
            gradients = pull_back(ops.convert_to_tensor(towards))
        else:
            import tensorflow as tf

            arguments = [tf.constant(value) for value in values]
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                result = function(*arguments)
            gradients = tape.gradient(result, arguments, tf.constant(towards))
        return [ops.convert_to_numpy(value) for value in (result, *gradients)]

    return differentiated(ours), differentiated(plain)


def summed_rows(values):
    from keras import ops

    from gpt2_trainer.model.backend import row_sums

    return ops.convert_to_numpy(row_sums(ops.convert_to_tensor(values)))
