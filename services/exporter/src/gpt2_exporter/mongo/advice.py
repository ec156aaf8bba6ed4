"""What users can do about unusable documents of MongoDB, by the reasons that occurred."""

from gpt2_exporter.corpus import record
from gpt2_exporter.corpus.advice import FIELD_REASONS, MAX_DOCUMENT, advice_on
from gpt2_exporter.corpus.tally import Tally


def advice_on_collections(tally: Tally, text_field: str) -> str:
    """What to change in the request or in the collections.

    Args:
        tally: What was left out.
        text_field: Path of the text as it is now.
    """
    correct = ["correct these documents in MongoDB"]
    field = [f"set source.text_field to the path of the text (now {text_field})", *correct]
    return advice_on(
        tally,
        {
            **dict.fromkeys(FIELD_REASONS, field),
            record.IN_LIST: [
                "set source.list_separator to what stands between the texts of a list, "
                f"or source.text_field to another path (now {text_field})"
            ],
            record.BROKEN_TEXT: correct,
            record.BROKEN_BSON: correct,
            record.TOO_LARGE: [f"split the larger ones, as a text has at most {MAX_DOCUMENT}"],
        },
    )
