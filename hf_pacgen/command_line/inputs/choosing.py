"""Which columns hold the inputs and the labels of a task, if the user does not say so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets

from hf_pacgen.command_line.inputs import columns as c
from hf_pacgen.command_line.inputs.columns import Columns, Role
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.formats import of_template
from hf_pacgen.errors import InputError

# names as data sets on the hub have them, the most telling first
TEXT_NAMES = ("text", "sentence", "content", "review", "tweet", "document", "question", "utterance", "prompt", "title")
HALVES = ("question", "prompt", "title", "utterance")  # of these names, which say little beside another text
PAIR_NAMES = [("sentence1", "sentence2"), ("premise", "hypothesis"), ("question1", "question2")]
PAIR_NAMES += [("question", "sentence"), ("question", "passage"), ("query", "passage")]
PAIR_NAMES += [("text1", "text2"), ("text_a", "text_b")]
LABEL_NAMES = ("label", "labels", "target", "class", "category", "sentiment", "intent", "fine_label", "y")
IMAGE_NAMES = ("image", "img", "images", "picture", "photo", "pixel_values", "file_name", "file", "path")
AUDIO_NAMES = ("audio", "sound", "speech", "file", "path", "file_name")
WORD_NAMES = ("tokens", "words", "text", "sentence")
TAG_NAMES = ("ner_tags", "tags", "ner", "labels", "label", "pos_tags", "upos", "chunk_tags")
MASK_NAMES = ("label", "annotation", "mask", "segmentation_mask", "labels", "segmentation", "annotations")
OBJECT_NAMES = ("objects", "annotations", "annotation", "label", "labels")
SPOKEN_NAMES = ("text", "sentence", "transcription", "transcript", "normalized_text", "label")
QUESTION_NAMES, CONTEXT_NAMES, ANSWER_NAMES = ("question",), ("context", "passage"), ("answers", "answer")
CHOICE_NAMES = ("choices", "options", "endings", "answers", "candidates")
CHOSEN_NAMES = ("label", "answer", "answerkey", "correct", "gold", "target")
ASKED_NAMES = ("sent1", "question", "ctx", "startphrase", "context", "premise", "sentence", "text", "goal", "prompt")
# a text, and what begins each answer to it: of SWAG, HellaSwag, RACE, Cosmos QA and the like
LED_NAMES = [("sent1", "sent2"), ("ctx_a", "ctx_b"), ("article", "question"), ("context", "question")]
LED_NAMES += [("passage", "question"), ("paragraph", "question")]
SOURCE_NAMES = [("source", "target"), ("src", "tgt"), ("document", "summary"), ("article", "highlights")]
SOURCE_NAMES += [("article", "summary"), ("dialogue", "summary"), ("text", "summary"), ("input", "output")]
SOURCE_NAMES += [("input_text", "target_text"), ("inputs", "targets"), ("text", "target"), ("question", "answer")]
SOURCE_NAMES += [("prompt", "completion")]

TEXT = Role("text", "text-column", c.is_text, "text", nested=True)
PAIR = Role("text-pair", "text-pair-column", c.is_text, "text", nested=True)
IMAGE = Role("image", "image-column", c.may_be_image, "images")
AUDIO = Role("audio", "audio-column", c.may_be_audio, "sounds")
LABEL = Role("label", "label-column", c.may_be_label, "labels (numbers or names)")
CLASS = Role("label", "label-column", c.may_be_class, "labels (numbers or names)")
WORDS = Role("words", "text-column", c.is_texts, "lists of words")
TAGS = Role("tags", "label-column", c.are_classes, "lists of tags (numbers or names), one for each word")
QUESTION = Role("question", "text-column", c.is_text, "text")
CONTEXT = Role("context", "text-pair-column", c.is_text, "text")
ANSWERS = Role("answers", "label-column", c.is_dictionary, "dictionaries of text and answer_start, as in SQuAD")
SOURCE = Role("source", "text-column", c.is_text, "text", nested=True)
TARGET = Role("target", "label-column", c.is_text, "text", nested=True)
MASK = Role("mask", "label-column", c.may_be_image, "images whose pixels are classes")
OBJECTS = Role("objects", "label-column", c.is_dictionary, "dictionaries of bbox and category")
SPOKEN = Role("transcription", "label-column", c.is_text, "text")
CHOICES = Role("choices", "choice-columns", lambda f: c.is_texts(f) or c.is_dictionary(f), "lists of texts")
CHOICE = Role("choice", "choice-columns", c.is_text, "text")


def image_and_label(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of image classification."""
    image = _image_column(table, args)
    return Columns(image=image, label=_label_column(table, args, {image}, CLASS))


def image_and_mask(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of segmentation: an image, and one whose pixels are classes."""
    free = [name for name in c.those(table, c.is_image) if name != args.image_column]
    masks = c.well_known(free, MASK_NAMES) or [name for name in free if name.lower() not in IMAGE_NAMES][:1]
    masks = masks or c.well_known(c.those(table, c.is_text), MASK_NAMES)
    mask = MASK.chosen(table, args.label_column, masks)
    return Columns(image=_image_column(table, args, {mask}), label=mask)


def image_and_objects(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of object detection: an image, and its boxes."""
    found = c.those(table, lambda feature: c.is_dictionary(feature) and not c.is_image(feature))
    objects = OBJECTS.chosen(table, args.label_column, c.well_known(found, OBJECT_NAMES) or c.only(found))
    return Columns(image=_image_column(table, args, {objects}), label=objects)


def audio_and_label(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of audio classification."""
    audio = _audio_column(table, args)
    return Columns(audio=audio, label=_label_column(table, args, {audio}, CLASS))


def audio_and_text(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of speech recognition."""
    audio = _audio_column(table, args)
    texts = [name for name in c.those(table, c.is_text) if name != audio]
    found = c.well_known(texts, SPOKEN_NAMES) or c.only(texts)
    return Columns(audio=audio, label=SPOKEN.chosen(table, args.label_column, found))


def texts_and_label(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of sequence classification: a text or a pair of texts, and the label, or one column for each."""
    text, pair = args.text_column, args.text_pair_column
    if text is None and {"chosen", "rejected"} <= set(table.column_names):
        raise InputError(
            "The data are preferences (chosen, rejected), whose loss compares two rows, and that of "
            "sequence-classification does not. Score them inside your RewardTrainer, by a PACGenCallback, or name a "
            "text with --text-column."
        )
    if text is None and pair is None:
        # a pair that is well known comes before any single text: half of it would be another task
        text, pair = c.known_pair(c.those(table, c.is_text), PAIR_NAMES)
    # the label may be text as well
    text = _text_column(table, text, taken={pair, args.label_column})
    if pair is not None:
        PAIR.check(table, pair)
    if labels := _yes_or_no(table, args, config):
        columns = Columns(text=text, text_pair=pair, labels=labels)
    else:
        columns = Columns(text=text, text_pair=pair, label=_label_column(table, args, {text, pair}, LABEL))
    if args.text_column is not None or pair is not None or text.lower() not in HALVES:
        return columns
    return c.check_whole(table, columns, "Name what it reads with --text-column and --text-pair-column.")


def words_and_tags(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of token classification: lists of words, and as many tags."""
    lists = [name for name in c.those(table, c.is_texts) if name != args.label_column]
    words = WORDS.chosen(table, args.text_column, c.well_known(lists, WORD_NAMES) or c.only(lists))
    free = [name for name in c.those(table, c.are_classes) if name != words]
    return Columns(
        text=words, label=TAGS.chosen(table, args.label_column, c.well_known(free, TAG_NAMES) or c.only(free))
    )


def question_and_answers(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of extractive question answering, as SQuAD has them."""
    texts = c.those(table, c.is_text)
    question = QUESTION.chosen(table, args.text_column, c.well_known(texts, QUESTION_NAMES))
    context = CONTEXT.chosen(table, args.text_pair_column, c.well_known(texts, CONTEXT_NAMES))
    found = c.well_known(c.those(table, c.is_dictionary), ANSWER_NAMES)
    return Columns(text=question, text_pair=context, label=ANSWERS.chosen(table, args.label_column, found))


def source_and_target(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of a model from text to text, or those of a template, which ends with the target."""
    if args.template is not None:
        columns = of_template(table, args)
        if columns.label is None:
            raise InputError(
                f"--template {args.template!r} names one column: expected the source and then the target, such as "
                "'{question} {answer}'."
            )
        return columns
    source, target = args.text_column, args.label_column
    texts = c.those(table, c.is_text)
    if source is None and target is None:
        if spoken := c.those(table, lambda f: c.is_dictionary(f) and not c.is_list(f)):
            raise InputError(
                f"The column {spoken[0]!r} holds a text in each of several languages, and nothing says which is the "
                f"source: the data has {c.listed(table)}. Name both: --text-column {spoken[0]}.en "
                f"--label-column {spoken[0]}.de, say."
            )
        source, target = c.known_pair(texts, SOURCE_NAMES)
    if source is None:
        source = SOURCE.chosen(table, None, c.only([name for name in texts if name != target]))
    SOURCE.check(table, source)
    columns = Columns(text=source, label=TARGET.chosen(table, target, c.only([n for n in texts if n != source])))
    remedy = (
        "Name the source and the target with --text-column and --label-column, or write both with --template, such as "
        "'{question} {context} {answer}', which ends with the target."
    )
    return columns if args.text_column is not None else c.check_whole(table, columns, remedy)


def text_and_choices(table: datasets.Dataset, args: DataArguments, config: Any = None) -> Columns:
    """The columns of multiple choice: a text, the answers to choose from, and the number of the right one."""
    given = tuple(args.choice_columns or ())
    if len(given) == 1:
        choices: tuple[str, ...] = (CHOICES.check(table, given[0]),)
    elif given:
        choices = tuple(CHOICE.check(table, name) for name in given)
    else:
        endings = [name for name in c.those(table, c.is_text) if name[:-1] in ("ending", "choice", "option", "answer")]
        lists = c.well_known(c.those(table, CHOICES.fits), CHOICE_NAMES)
        choices = tuple(sorted(endings)) if len(endings) > 1 else (CHOICES.chosen(table, None, lists),)
    texts = [name for name in c.those(table, c.is_text) if name not in (*choices, args.label_column)]
    text, pair = args.text_column, args.text_pair_column
    if text is None and pair is None:
        text, pair = c.known_pair(texts, LED_NAMES)
    text = TEXT.chosen(table, text, c.well_known(texts, ASKED_NAMES) or c.only(texts))
    if pair is not None:
        PAIR.check(table, pair)
    free = [name for name in c.those(table, c.may_be_class) if name not in (text, pair, *choices)]
    label = CLASS.chosen(table, args.label_column, c.well_known(free, CHOSEN_NAMES))
    columns = Columns(text=text, text_pair=pair, choices=choices, label=label)
    # HellaSwag has its two parts as one, too
    if args.text_column is not None or pair == "ctx_b":
        return columns
    remedy = "Name the text with --text-column, and what begins each answer with --text-pair-column."
    return c.check_whole(table, columns, remedy)


def has_images(table: datasets.Dataset, args: DataArguments) -> bool:
    """Whether there is a column of images, or one was named."""
    return bool(args.image_column) or bool(c.those(table, c.is_image))


def has_label(table: datasets.Dataset, args: DataArguments) -> bool:
    """Whether one column must be the label, beside the text."""
    return args.label_column is not None or bool(_labels(table, {args.text_column}, c.may_be_label))


def _image_column(table: datasets.Dataset, args: DataArguments, taken: set[str] | None = None) -> str:
    images = [name for name in c.those(table, c.is_image) if name not in (taken or ())]
    named = c.well_known([name for name in c.those(table, c.may_be_image) if name not in (taken or ())], IMAGE_NAMES)
    # a column of that name that holds images, else one with the names of files, else the only images there are
    found = [name for name in named if name in images] or named or c.only(images)
    return IMAGE.chosen(table, args.image_column, found)


def _audio_column(table: datasets.Dataset, args: DataArguments) -> str:
    sounds, named = c.those(table, c.is_audio), c.well_known(c.those(table, c.may_be_audio), AUDIO_NAMES)
    found = [name for name in named if name in sounds] or c.only(sounds) or named
    return AUDIO.chosen(table, args.audio_column, found)


def _text_column(table: datasets.Dataset, given: str | None, taken: set[str | None]) -> str:
    texts = [name for name in c.those(table, c.is_text) if name not in taken]
    free = [name for name in texts if name.lower() not in LABEL_NAMES + c.NO_LABELS]
    return TEXT.chosen(table, given, c.well_known(texts, TEXT_NAMES) or c.only(free))


def _label_column(table: datasets.Dataset, args: DataArguments, taken: set[str | None], role: Role) -> str:
    return role.chosen(table, args.label_column, _labels(table, taken, role.fits))


def _labels(table: datasets.Dataset, taken: set[str | None], fits: Any) -> list[str]:
    free = [name for name in c.those(table, fits) if name not in taken]
    classes = [name for name in free if isinstance(table.features[name], datasets.ClassLabel)]
    plain = [name for name in free if c.may_be_class(table.features[name]) and not c.is_text(table.features[name])]
    numbers = [name for name in plain if name.lower() not in c.NO_LABELS]
    # two columns of classes are a doubt for a person to settle; that of numbers is asked last, since it may be a count
    return c.well_known(free, LABEL_NAMES) or c.only(classes) or c.only(numbers)


def _yes_or_no(table: datasets.Dataset, args: DataArguments, config: Any) -> tuple[str, ...]:
    """The columns of a model of several labels at once that has one column for each; nothing for other models."""
    if args.label_column is not None or getattr(config, "problem_type", None) != "multi_label_classification":
        return ()
    names: Sequence[str] = [str(config.id2label[number]) for number in range(config.num_labels)]
    return tuple(names) if set(names) <= set(c.those(table, c.may_be_class)) else ()
