"""What the tests let a process with one of Keras' backends compute. All take and return NumPy arrays."""

import os
from itertools import islice
from pathlib import Path

import numpy as np

from gpt2_trainer.model.backend import select_backend
from gpt2_trainer.model.weights import cut_vocabulary, pad_vocabulary

ROUNDED = ("embed", "matmul", "layer_norm", "gelu", "attention", "causal_attention")
"""Kernels whose results have the compute dtype; those of the others are float32."""
QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA's own passes, which the tests are about, stay; LLVM takes most of the time for programs of a second."""


def cache_variables(cache):
    """Most tests compile what another has compiled before."""
    return {
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        # TensorFlow would take the first folder of a process for all its jobs.
        "TF_XLA_FLAGS": "--tf_xla_persistent_cache_directory=",
    }


def start_backend(name, cache, devices=1):
    os.environ |= cache_variables(cache)
    flags = QUICK_COMPILATION
    if devices > 1:
        # JAX takes the cores for so many devices.
        flags += f" --xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = flags
    select_backend(name)


def model_logits(architecture, weights, token_ids, padded=True, fast=False, **options):
    """Logits of the reference, or of the kernels that are chosen for this backend."""
    from keras import ops

    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.model.gpt2 import GPT2

    weights = pad_vocabulary(weights, architecture) if padded else weights
    model = create_model(architecture, **options) if fast else GPT2(architecture=architecture, **options)
    return ops.convert_to_numpy(model.logits(weights, token_ids))


def train_steps(architecture, weights, options, batches, with_slots=False, **model_options):
    """Trains a few steps. Returns the weights, and loss, gradient norm and learning rate of each step.

    With slots, it also returns the slots after each step, and whether each step was applied.
    """
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    model = create_model(architecture, options.precision, training=True, **model_options)
    executor = create_executor(TrainingStep(model, options), pad_vocabulary(weights, architecture), None)
    results, slots = [], []
    for number, batch in enumerate(batches):
        results.append(executor.train(number, *batch))
        if with_slots:
            slots.append(cut_vocabulary(executor.slots(), architecture))
    metrics = [(float(item.loss), float(item.gradient_norm), float(item.learning_rate)) for item in results]
    trained = cut_vocabulary(executor.weights(), architecture)
    return (trained, metrics, slots, [bool(item.applied) for item in results]) if with_slots else (trained, metrics)


def averaged_steps(architecture, weights, options, batches):
    """After each step: the weights, the slots, and the validation losses of the step's batch."""
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    step = TrainingStep(create_model(architecture, training=True), options)
    executor, found = create_executor(step, pad_vocabulary(weights, architecture), None), []
    for number, batch in enumerate(batches):
        executor.train(number, *batch)
        tensors = [cut_vocabulary(item, architecture) for item in (executor.weights(), executor.slots())]
        found.append((*tensors, executor.validate(*batch)))
    return found


def continued_training(architecture, weights, options, batches, cut):
    """Weights after a training's steps, and after those of one that resumes from what was saved after `cut` steps."""
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    model = create_model(architecture, options.precision, training=True, remat=options.gradient_checkpointing)
    step, weights = TrainingStep(model, options), pad_vocabulary(weights, architecture)
    executor, found = create_executor(step, weights, None), []
    for number, batch in enumerate(batches):
        if number == cut:
            resumed = create_executor(step, executor.weights(), executor.slots())
        executor.train(number, *batch)
    for number, batch in enumerate(batches[cut:], start=cut):
        resumed.train(number, *batch)
    found = [cut_vocabulary(item.weights(), architecture) for item in (executor, resumed)]
    return tuple(found)


def dropout_masks(options, step, part, shapes):
    """What values of 1 become at places of layers, {(place, layer): shape}, in a micro-batch of a step."""
    from keras import ops

    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.step import TrainingStep
    from trainer_support.data import small_architecture

    dropout = TrainingStep(create_model(small_architecture(), training=True), options)._dropout(step, part)
    return {
        (place, layer): ops.convert_to_numpy(dropout.apply(ops.ones(shape, options.precision), place, layer))
        for (place, layer), shape in shapes.items()
    }


def random_operations(architecture, weights, options, batch):
    """How many operations of a compiled training step draw random numbers."""
    import keras

    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    step = TrainingStep(create_model(architecture, training=True), options)
    executor = create_executor(step, pad_vocabulary(weights, architecture), None)
    if keras.config.backend() == "jax":
        lowered = executor._update.lower(executor._trained, executor._slots, executor._frozen, np.int32(0), *batch)
        return lowered.as_text().count("threefry")
    graph = executor._train.get_concrete_function().graph.as_graph_def()
    nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
    return sum("Random" in node.op for node in nodes)


def validation_losses(architecture, weights, options, inputs, targets, **model_options):
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    step = TrainingStep(create_model(architecture, training=True, **model_options), options)
    return create_executor(step, pad_vocabulary(weights, architecture), None).validate(inputs, targets)


def step_layouts(architecture, weights, options):
    """Devices, and the shape of the part that each of them has, of every weight and slot after a step."""
    from gpt2_trainer.kernels.selection import create_model
    from gpt2_trainer.training.executor import create_executor
    from gpt2_trainer.training.step import TrainingStep

    model = create_model(architecture, options.precision, training=True)
    executor = create_executor(TrainingStep(model, options), pad_vocabulary(weights, architecture), None)
    batch = np.zeros((2, options.batch_size, options.context_length), np.int32)
    executor.train(0, *batch)
    tensors = executor.tensors() | executor._slots
    return {name: (len(value.devices()), value.sharding.shard_shape(value.shape)) for name, value in tensors.items()}


def learning_rates(options, steps):
    from gpt2_trainer.training.schedule import learning_rate

    return [float(learning_rate(options, step)) for step in steps]


def weight_decays(options, steps):
    from gpt2_trainer.training.schedule import weight_decay

    return [float(weight_decay(options, step)) for step in steps]


def first_slots(options, weights):
    from gpt2_trainer.training import optimizer

    return optimizer.first_slots(options, weights)


def guard_decisions(options, before, asked):
    """Whether updates with losses and norms are applied, after others that were."""
    from keras import ops

    from gpt2_trainer.training import spike_detection

    def tensors(values):
        return [ops.convert_to_tensor(np.float32(value)) for value in values]

    state = _tensors(spike_detection.initial_statistics())
    for values in before:
        state = spike_detection.updated_statistics(state, *tensors(values))
    return [bool(spike_detection.should_apply(options, state, *tensors(values))) for values in asked]


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


def muon_directions(weights, gradients, momentum):
    """Muon's directions before normalisation after the gradients, and those of optax, by name."""
    import jax
    from keras import ops
    from optax.contrib import MuonDimensionNumbers, scale_by_muon

    from gpt2_trainer.training import muon

    found = {}
    for name in weights:
        first = np.zeros_like(weights[name])
        for number, gradient in enumerate(gradients, start=1):
            tensor = ops.convert_to_tensor(gradient[name])
            first = muon.momentum(first, tensor, momentum)
            wide = muon.matrices_ahead(name, first, tensor, momentum, np.float32(number), "float32")
            found[name] = muon.directions(muon.orthogonalized(wide), first.shape[0])
    # Queries, keys and values are three matrices along one more axis.
    shapes = {name: (value.shape[0], 3 if "c_attn" in name else 1, -1) for name, value in weights.items()}
    axes = {name: MuonDimensionNumbers(reduction_axis=0, output_axis=2) for name in weights}
    optimizer = scale_by_muon(beta=momentum, weight_dimension_numbers=axes)
    state = optimizer.init({name: jax.numpy.reshape(weights[name], shapes[name]) for name in weights})
    for gradient in gradients:
        tensors = {name: jax.numpy.reshape(gradient[name], shapes[name]) for name in weights}
        directions, state = optimizer.update(tensors, state)
    return _arrays(found), {name: np.moveaxis(np.asarray(value), 1, 0) for name, value in directions.items()}


def after_a_skipped_update(options, weights, gradients):
    """Weights and slots after an update that made slots, and after one more that is skipped."""
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

    decoder = Decoder(architecture, precision)
    tokens = decoder.generate(decoder.load(weights), prompt, samples, sampling, seed)
    return np.stack(list(islice(tokens, count)), axis=1)


def packed_products(rows, matrix):
    """Products of rows, one at a time, and a matrix of bfloat16 bit patterns; bytes that the program takes besides."""
    import jax
    import ml_dtypes

    from gpt2_trainer.kernels import packed_bfloat16

    packed = packed_bfloat16.pack(jax.numpy.asarray(matrix.view(ml_dtypes.bfloat16)))
    if packed is None:
        return None
    program = jax.jit(packed_bfloat16.multiply_row, static_argnums=2).lower(rows[0], packed, matrix.shape[1]).compile()
    return [np.asarray(program(row, packed)) for row in rows], program.memory_analysis().temp_size_in_bytes


def drawn(logits, count, sampling):
    """Tokens that so many samples of seed 0 draw at the first position."""
    from keras import ops

    from gpt2_trainer.generation.counter_based_random import stream_keys
    from gpt2_trainer.generation.sampling import SamplingTensors, sample_tokens

    seed = ops.zeros((2,), "uint32")
    keys = stream_keys((seed[0], seed[1]), np.arange(count, dtype=np.int32))
    scalars = SamplingTensors.of(sampling)
    return ops.convert_to_numpy(sample_tokens(ops.convert_to_tensor(logits), keys, np.int32(0), scalars))


def encrypted(key, counter):
    """Threefry of words, as lists of Python's integers."""
    from keras import ops

    from gpt2_trainer.generation.counter_based_random import threefry

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

    A case is prompts of one length, samples, tokens, SamplingConfig and seed.
    """
    from gpt2_trainer.generation.decoder import Decoder

    decoder = Decoder(architecture, precision)
    loaded, end = decoder.load(weights), architecture.end_token_id
    texts = []
    for prompts, samples, count, sampling, seed in cases:
        steps = islice(decoder.generate_batch(loaded, prompts, samples, sampling, seed), count)
        rows = np.stack(list(steps), axis=2).reshape(-1, count).tolist()
        texts.append([row[: row.index(end)] if end in row else row for row in rows])
    return texts


def penalized(logits, history, length, penalty, ngram_size):
    from keras import ops

    from gpt2_trainer.configuration.sampling import SamplingConfig
    from gpt2_trainer.generation.penalties import penalize
    from gpt2_trainer.generation.sampling import SamplingTensors

    logits, history = ops.convert_to_tensor(logits), ops.convert_to_tensor(history)
    scalars = SamplingTensors.of(SamplingConfig(repetition_penalty=penalty, no_repeat_ngram_size=ngram_size))
    return ops.convert_to_numpy(penalize(logits, history, np.int32(length), scalars))


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


def suspend_job(phase, step, module, function, request_type, request, folder, job_id, **settings):
    """Runs a job until it reports a phase at a step, where its service suspends it."""
    import importlib

    from gpt2.trainer.v1 import trainer_service_pb2
    from gpt2_common.errors import JobSuspended
    from trainer_support.jobs import make_context

    context = make_context(Path(folder), job_id, **settings)
    report = context.report

    def report_and_suspend(now, done=0, *arguments):
        report(now, done, *arguments)
        if (now, done) == (phase, step):
            context.interruption.suspend()

    context.report = report_and_suspend
    try:
        getattr(importlib.import_module(module), function)(
            getattr(trainer_service_pb2, request_type).FromString(request), context
        )
    except JobSuspended:
        return True
    return False


def run_job_with_default(name, value, *job, **settings):
    """Runs a job as `run_job` in a version that has another default of a training's configuration."""
    from gpt2_trainer.configuration.training import ResolvedTrainingConfig

    defaults = ResolvedTrainingConfig.__init__.__kwdefaults__
    before = defaults[name]
    defaults[name] = value
    try:
        return run_job(*job, **settings)
    finally:
        defaults[name] = before


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


def kernel_and_reference(name, values, upstream, dtype="float32", compiled=True, options=None):
    """Results and gradients of a kernel as it is chosen for this backend, and of the reference with automatic ones.

    Args:
        name: A field of `Kernels`.
        values: Arguments that gradients are taken by; matrices become tensors of the dtype, vectors stay float32.
        upstream: The result's gradient.
        compiled: Choose the kernels of functions that XLA compiles as a whole.
        options: `constants` of the call by name, and `arguments` after the values.

    Returns:
        Two lists of float32 arrays, each the result and the gradients by the values.
    """
    import keras
    from keras import ops

    from gpt2_trainer.kernels.selection import select_kernels
    from gpt2_trainer.model.gpt2 import REFERENCE

    arguments, constants = (options or {}).get("arguments", ()), (options or {}).get("constants", {})
    kernels = select_kernels(dtype, 8, compiled=compiled)
    tensors = [ops.convert_to_tensor(value, dtype if value.ndim > 1 else "float32") for value in values]
    upstream = ops.convert_to_tensor(upstream, dtype if name in ROUNDED else "float32")

    def differentiated(operation):
        def function(*tensors):
            return operation(*tensors, *arguments, **constants)

        if keras.config.backend() == "jax":
            import jax

            result, pull_back = jax.vjp(function, *tensors)
            gradients = pull_back(upstream)
        else:
            import tensorflow as tf

            with tf.GradientTape() as tape:
                tape.watch(tensors)
                result = function(*tensors)
            gradients = [tf.convert_to_tensor(value) for value in tape.gradient(result, tensors, upstream)]
        return [ops.convert_to_numpy(ops.cast(value, "float32")) for value in (result, *gradients)]

    return differentiated(getattr(kernels, name)), differentiated(getattr(REFERENCE, name))


def kernel_names():
    from dataclasses import fields

    from gpt2_trainer.model.gpt2 import Kernels

    return [field.name for field in fields(Kernels)]


def token_losses_both_ways(hidden, embedding, targets, vocabulary_size, max_logits):
    """Losses and whether each target is the likeliest, by the chosen kernel and by the reference."""
    from keras import ops

    from gpt2_trainer.kernels.selection import select_kernels
    from gpt2_trainer.model.gpt2 import REFERENCE

    tensors = [ops.convert_to_tensor(value) for value in (hidden, embedding, targets)]
    kernels = select_kernels("float32", 8, max_logits=max_logits)
    found = [one.token_losses(*tensors, vocabulary_size) for one in (kernels, REFERENCE)]
    return [[ops.convert_to_numpy(value) for value in pair] for pair in found]


def summed_rows(values):
    from keras import ops

    from gpt2_trainer.kernels.primitives import row_sums

    return ops.convert_to_numpy(row_sums(ops.convert_to_tensor(values)))
