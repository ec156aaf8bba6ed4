"""The work of the toy's stage."""

from gpt2_common.jobs.context import output


def count_words(request, context):
    corpus = context.open("corpus_uri", request.corpus_uri, "corpus")
    words = [word for word in (corpus.folder / "text.txt").read_text().split() if len(word) >= request.min_length]
    with context.create("words", "words", [corpus]) as writer:
        (writer.folder / "words.txt").write_text("\n".join(words))
        return [output("words", writer.commit({"words": len(words)}))]
