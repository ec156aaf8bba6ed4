"""GPT-2 and AdamW in plain NumPy, in float64, written from the papers and OpenAI's code: what ours must agree with."""

import math

import numpy as np


def softmax(values):
    exponentials = np.exp(values - values.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def norm(values, gain, bias, epsilon=1e-5):
    mean = values.mean(axis=-1, keepdims=True)
    return gain * (values - mean) / np.sqrt(values.var(axis=-1, keepdims=True) + epsilon) + bias


def gelu(values):
    return 0.5 * values * (1 + np.tanh(np.sqrt(2 / np.pi) * (values + 0.044715 * values**3)))


def exact_gelu(values):
    return 0.5 * values * (1 + np.vectorize(math.erf)(values / math.sqrt(2)))


def undropped(values, place, layer):
    return values


def logits(weights, token_ids, n_layer, n_head, drop=undropped, **relative):
    """[batch, time] -> [batch, time, vocabulary], with OpenAI's mask.

    `drop` applies dropout to values at a place of a layer. `relative` holds what differs from OpenAI's GPT-2, by the
    names of `config.json` of `transformers`.
    """
    epsilon = relative.get("layer_norm_epsilon", 1e-5)
    activation = exact_gelu if relative.get("activation_function") == "gelu" else gelu
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    time = token_ids.shape[1]
    hidden = weights["wte.weight"][token_ids] + weights["wpe.weight"][:time]
    hidden = drop(hidden, "embedding", 0)
    mask = np.tri(time)
    for layer in range(n_layer):
        part = {name.removeprefix(f"h.{layer}."): value for name, value in weights.items()}
        inner = norm(hidden, part["ln_1.weight"], part["ln_1.bias"], epsilon)
        queries, keys, values = np.split(inner @ part["attn.c_attn.weight"] + part["attn.c_attn.bias"], 3, axis=-1)
        mixed = np.empty_like(queries)
        size = queries.shape[-1] // n_head
        factor = 1 / np.sqrt(size) if relative.get("scale_attn_weights", True) else 1
        if relative.get("scale_attn_by_inverse_layer_idx"):
            factor = factor / (layer + 1)
        attended = []
        for head in range(n_head):
            columns = slice(head * size, (head + 1) * size)
            scores = queries[..., columns] @ keys[..., columns].transpose(0, 2, 1) * factor
            attended.append(softmax(scores * mask - 1e10 * (1 - mask)))
        attended = drop(np.stack(attended, axis=1), "attention", layer)
        for head in range(n_head):
            columns = slice(head * size, (head + 1) * size)
            mixed[..., columns] = attended[:, head] @ values[..., columns]
        added = mixed @ part["attn.c_proj.weight"] + part["attn.c_proj.bias"]
        hidden = hidden + drop(added, "attention_output", layer)
        inner = norm(hidden, part["ln_2.weight"], part["ln_2.bias"], epsilon)
        inner = activation(inner @ part["mlp.c_fc.weight"] + part["mlp.c_fc.bias"])
        added = inner @ part["mlp.c_proj.weight"] + part["mlp.c_proj.bias"]
        hidden = hidden + drop(added, "mlp_output", layer)
    head = weights.get("lm_head.weight", weights["wte.weight"])
    return norm(hidden, weights["ln_f.weight"], weights["ln_f.bias"], epsilon) @ head.T


def losses(weights, token_ids, targets, n_layer, n_head, drop=undropped, **relative):
    """Mean cross-entropy of each row."""
    probabilities = softmax(logits(weights, token_ids, n_layer, n_head, drop, **relative))
    return -np.log(np.take_along_axis(probabilities, targets[..., None], axis=-1))[..., 0].mean(axis=-1)


def greedy(weights, prompt, count, n_layer, n_head, n_ctx, **relative):
    """Continues a prompt with a full recomputation for each token, by the decoder's rule for full contexts."""
    context, made = list(prompt)[-n_ctx:], []
    for _ in range(count):
        if len(context) > n_ctx:
            context = context[-max(1, n_ctx // 2) :]
        made.append(int(logits(weights, np.array([context]), n_layer, n_head, **relative)[0, -1].argmax()))
        context.append(made[-1])
    return made


def penalized(logits, tokens, penalty, ngram_size):
    """Logits [vocabulary] after the tokens seen so far, as `transformers`' two logits processors leave them."""
    logits = logits.astype(np.float64).copy()
    for token in set(tokens):
        logits[token] = logits[token] * penalty if logits[token] < 0 else logits[token] / penalty
    if ngram_size and len(tokens) + 1 >= ngram_size:
        followers = {}
        for place in range(len(tokens) - ngram_size + 1):
            *beginning, last = tokens[place : place + ngram_size]
            followers.setdefault(tuple(beginning), []).append(last)
        end = tuple(tokens[len(tokens) - ngram_size + 1 :])
        logits[followers.get(end, [])] = -np.inf
    return logits


def greedy_penalized(weights, prompt, count, n_layer, n_head, n_ctx, penalty, ngram_size):
    """As `greedy`, with penalties by all tokens of prompt and output."""
    tokens = list(prompt)[-n_ctx:]
    context, start = list(tokens), len(tokens)
    for _ in range(count):
        if len(context) > n_ctx:
            context = context[-max(1, n_ctx // 2) :]
        after = logits(weights, np.array([context]), n_layer, n_head)[0, -1]
        tokens.append(int(penalized(after, tokens, penalty, ngram_size).argmax()))
        context.append(tokens[-1])
    return tokens[start:]


class AdamW:
    """Loshchilov and Hutter, algorithm 2, with the decay scaled by the learning rate."""

    def __init__(self, betas, decay, is_decayed, epsilon=1e-8):
        self.betas, self.decay, self.is_decayed, self.epsilon = betas, decay, is_decayed, epsilon
        self.first, self.second, self.step = {}, {}, 0

    def update(self, weights, gradients, rate):
        self.step += 1
        updated = {}
        for name, gradient in gradients.items():
            gradient = gradient.astype(np.float64)
            self.first[name] = self.betas[0] * self.first.get(name, 0) + (1 - self.betas[0]) * gradient
            self.second[name] = self.betas[1] * self.second.get(name, 0) + (1 - self.betas[1]) * gradient**2
            first = self.first[name] / (1 - self.betas[0] ** self.step)
            second = self.second[name] / (1 - self.betas[1] ** self.step)
            decay = rate * self.decay * weights[name] if self.is_decayed(name) else 0
            updated[name] = weights[name] - decay - rate * first / (np.sqrt(second) + self.epsilon)
        return updated


class Muon:
    """Muon with Nesterov's momentum, each output normalised as NorMuon does, and cautious decay; else AdamW."""

    def __init__(self, momentum, betas, decay, is_decayed, is_hidden):
        self.momentum, self.beta, self.decay = momentum, betas[1], decay
        self.is_decayed, self.is_hidden = is_decayed, is_hidden
        self.others = AdamW(betas, 0.0, is_decayed)
        self.first, self.second, self.step = {}, {}, 0

    def update(self, weights, gradients, rate):
        self.step += 1
        others = self.others.update(
            weights, {name: value for name, value in gradients.items() if not self.is_hidden(name)}, rate
        )
        updated = {}
        for name, gradient in gradients.items():
            weight = weights[name].astype(np.float64)
            if self.is_hidden(name):
                direction = self._direction(name, gradient.astype(np.float64))
            else:
                direction = (weight - others[name]) / rate
            decay = self.decay if self.is_decayed(name) else 0
            updated[name] = weight - rate * direction - rate * decay * weight * (weight * direction >= 0)
        return updated

    def _direction(self, name, gradient):
        beta = self.momentum
        first = self.first[name] = beta * self.first.get(name, 0) + (1 - beta) * gradient
        ahead = beta * first / (1 - beta ** (self.step + 1)) + (1 - beta) * gradient / (1 - beta**self.step)
        fused = name.endswith("attn.c_attn.weight") and not name.startswith("lora_a/")
        parts = [orthogonalized(part) for part in np.split(ahead, 3 if fused else 1, axis=1)]
        squares = np.concatenate([(part**2).mean(axis=0) for part in parts])
        second = self.second[name] = self.beta * self.second.get(name, 0) + (1 - self.beta) * squares
        scaled = [part / np.sqrt(rows) for part, rows in zip(parts, np.split(second, len(parts)), strict=True)]
        return np.concatenate([0.2 * part / np.sqrt((part**2).mean()) for part in scaled], axis=1)


def orthogonalized(matrix):
    """Five of Jordan's Newton-Schulz iterations, by the singular values alone."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((values**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


class Momentum:
    """Gradient descent with the classical momentum."""

    def __init__(self, momentum):
        self.momentum, self.directions = momentum, {}

    def update(self, weights, gradients, rate):
        for name, gradient in gradients.items():
            self.directions[name] = self.momentum * self.directions.get(name, 0) + gradient.astype(np.float64)
        return {name: weights[name] - rate * self.directions[name] for name in gradients}


class Adafactor:
    """Shazeer and Stern, algorithm 4 for matrices and 5 for vectors, with the rate given and decay scaled by it."""

    def __init__(self, decay, is_decayed):
        self.decay, self.is_decayed = decay, is_decayed
        self.rows, self.columns, self.second, self.step = {}, {}, {}, 0

    def update(self, weights, gradients, rate):
        self.step += 1
        beta = 1 - self.step**-0.8
        updated = {}
        for name, gradient in gradients.items():
            square = gradient.astype(np.float64) ** 2 + 1e-30
            if gradient.ndim == 2:
                self.rows[name] = beta * self.rows.get(name, 0) + (1 - beta) * square.sum(axis=1)
                self.columns[name] = beta * self.columns.get(name, 0) + (1 - beta) * square.sum(axis=0)
                estimate = np.outer(self.rows[name], self.columns[name]) / self.rows[name].sum()
            else:
                estimate = self.second[name] = beta * self.second.get(name, 0) + (1 - beta) * square
            direction = gradient / np.sqrt(estimate)
            direction = direction / max(1, np.sqrt((direction**2).mean()))
            decay = rate * self.decay * weights[name] if self.is_decayed(name) else 0
            updated[name] = weights[name] - decay - rate * direction
        return updated
