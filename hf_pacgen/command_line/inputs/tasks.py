"""The tasks of models.  All that depends on a task is its facts: another task is one more member."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import datasets
from transformers.models.auto import modeling_auto as auto

from hf_pacgen.command_line.inputs import choosing, formats, labels, language, pictures, processors, sounds, texts
from hf_pacgen.command_line.inputs.columns import Columns
from hf_pacgen.command_line.inputs.data import DataArguments
from hf_pacgen.command_line.inputs.other_tasks import from_python, other_task
from hf_pacgen.errors import InputError
from hf_pacgen.facts import Choice

__all__ = ["Task", "TaskFacts", "choose_task", "is_trained_for", "trained_task"]


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """All that the command line knows of one task.

    Attributes:
        auto_class: the class of transformers that loads a model with the task's head.
        heads: the classes that have such a head, by the type of the model.
        choose_columns: the columns that the task needs, as given or inferred.
        make_labels: how raw labels become the model's; None where they are no classes.
        load_processor: loads what turns raw rows into the model's inputs.
        make_examples: makes the inputs and their labels of rows, and batches of them where they are not stacked.
        loss: what the model's own loss is, in words.
        formats: the columns of a row, and what is made of them.
        suits: whether data asks for this task, of a model that gets a random head; None if that cannot be told.
        causal: each token is predicted from those before it, so the model must not see the later ones.
        shows_tokens: inputs and labels are shown as the tokens they became, since columns do not tell.
        reads: the settings of data, besides those of all tasks, that it uses; others are refused.
    """

    auto_class: str
    heads: Mapping[str, str | Sequence[str]]
    choose_columns: Callable[..., Columns]
    make_labels: Callable[..., labels.Labels] | None = None
    load_processor: Callable[..., Any]
    make_examples: Callable[..., Any]
    loss: str
    formats: tuple[tuple[str, str], ...]
    suits: Callable[[datasets.Dataset, DataArguments], bool] | None = None
    causal: bool = False
    shows_tokens: bool = False
    reads: tuple[str, ...] = ()


class Task(Choice):
    """What the model is trained for."""

    facts: TaskFacts

    SEQUENCE_CLASSIFICATION = (
        "sequence-classification",
        TaskFacts(
            auto_class="AutoModelForSequenceClassification",
            heads=auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            choose_columns=choosing.texts_and_label,
            make_labels=labels.sequence_labels,
            suits=choosing.has_label,
            load_processor=processors.load_tokenizer,
            make_examples=texts.classified,
            reads=("label_column", "text_column", "text_pair_column", "max_length"),
            loss="cross-entropy of the class; squared error for regression, binary cross-entropies for several labels",
            formats=(
                ("text, label", "one class: a number, or a name of the model's"),
                ("premise, hypothesis, label", "a pair of texts, under this or another well-known pair of names"),
                ("text, label", "a real number, where the model has one output or problem_type is regression"),
                ("text, labels", "several classes: a list of names or numbers, or of 0 and 1 for each"),
                ("text, anger, joy, ...", "several classes: a column of 0 and 1 for each of the model's labels"),
            ),
        ),
    )
    TOKEN_CLASSIFICATION = (
        "token-classification",
        TaskFacts(
            auto_class="AutoModelForTokenClassification",
            heads=auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
            choose_columns=choosing.words_and_tags,
            make_labels=labels.tag_labels,
            load_processor=processors.load_word_tokenizer,
            make_examples=texts.tagged,
            reads=("label_column", "text_column", "max_length"),
            loss="cross-entropy of the tag of each word, on its first token",
            formats=(("tokens, ner_tags", "lists of words, and of a number or a name for each"),),
        ),
    )
    QUESTION_ANSWERING = (
        "question-answering",
        TaskFacts(
            auto_class="AutoModelForQuestionAnswering",
            heads=auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
            choose_columns=choosing.question_and_answers,
            load_processor=processors.load_tokenizer,
            make_examples=texts.answered,
            reads=("label_column", "text_column", "text_pair_column", "max_length"),
            loss="mean cross-entropy of the first and the last token of the answer",
            formats=(
                ("question, context, answers", "SQuAD's: answers is {text: [...], answer_start: [...]}, or empty"),
            ),
        ),
    )
    SEQ2SEQ = (
        "seq2seq",
        TaskFacts(
            auto_class="AutoModelForSeq2SeqLM",
            heads=auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
            choose_columns=choosing.source_and_target,
            load_processor=processors.load_tokenizer,
            make_examples=language.translated,
            reads=("label_column", "text_column", "template", "source_prefix", "max_length"),
            loss="cross-entropy of the tokens of the target",
            formats=(
                ("source, target", "texts, under this or another well-known pair of names (document, summary)"),
                ("translation", "{en: ..., de: ...}, with --text-column translation.en --label-column translation.de"),
                (
                    "any",
                    "--template '{question} {context} {answer}': the last column is the target",
                ),
            ),
        ),
    )
    CAUSAL_LM = (
        "causal-lm",
        TaskFacts(
            auto_class="AutoModelForCausalLM",
            heads=auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
            choose_columns=formats.language_columns,
            load_processor=processors.load_tokenizer,
            make_examples=language.continued,
            reads=("label_column", "text_column", "template", "assistant_only", "completion_only", "eos", "max_length"),
            loss="cross-entropy of the next token",
            formats=(
                (
                    "text",
                    "the loss on every token but the first; with an end token as the run's SFTTrainer, or by --eos",
                ),
                (
                    "prompt, completion",
                    "the loss on the completion, texts or messages; as TRL, with its end token; --no-completion-only",
                ),
                ("messages", "a chat, by the chat template; with --assistant-only the loss on what the assistant says"),
                (
                    "instruction, input, output",
                    "the loss on the output, by Alpaca's template or --template; also instruction, context, response",
                ),
                ("any", "--template '{question} {answer}': the loss on the last column, or from --label-column on"),
            ),
            causal=True,
            shows_tokens=True,
        ),
    )
    MASKED_LM = (
        "masked-lm",
        TaskFacts(
            auto_class="AutoModelForMaskedLM",
            heads=auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
            choose_columns=formats.whole_text,
            load_processor=processors.load_tokenizer,
            make_examples=language.masked,
            reads=("text_column", "mask_share", "max_length"),
            loss="cross-entropy of the hidden tokens: 15 % of each text (--mask-share), drawn by its row",
            formats=(("text", "a text"),),
            shows_tokens=True,
        ),
    )
    MULTIPLE_CHOICE = (
        "multiple-choice",
        TaskFacts(
            auto_class="AutoModelForMultipleChoice",
            heads=auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
            choose_columns=choosing.text_and_choices,
            load_processor=processors.load_tokenizer,
            make_examples=texts.chosen_among,
            reads=("label_column", "text_column", "text_pair_column", "choice_columns", "max_length"),
            loss="cross-entropy of the right answer among all",
            formats=(
                ("sent1, sent2, ending0, ..., label", "SWAG's: each ending is read after sent2"),
                ("article, question, options, answer", "RACE's: each answer is read after the question"),
                ("question, choices, label", "a list of answers; the label is a number, a letter or the answer's text"),
                ("question, choices, answerKey", "{text: [...], label: [A, B, ...]}, as CommonsenseQA has it"),
            ),
        ),
    )
    IMAGE_CLASSIFICATION = (
        "image-classification",
        TaskFacts(
            auto_class="AutoModelForImageClassification",
            heads=auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
            choose_columns=choosing.image_and_label,
            make_labels=labels.class_labels,
            suits=choosing.has_images,
            load_processor=processors.load_image_processor,
            make_examples=pictures.seen,
            reads=("label_column", "image_column"),
            loss="cross-entropy of the class",
            formats=(
                ("image, label", "images, or the names of their files"),
                ("a folder", "folders of images, each with the name of its class (imagefolder)"),
            ),
        ),
    )
    IMAGE_SEGMENTATION = (
        "image-segmentation",
        TaskFacts(
            auto_class="AutoModelForSemanticSegmentation",
            heads=auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES,
            choose_columns=choosing.image_and_mask,
            load_processor=processors.load_image_processor,
            make_examples=pictures.segmented,
            reads=("label_column", "image_column"),
            loss="cross-entropy of the class of each pixel that is not 255",
            formats=(("image, label", "images, and images whose pixels are classes"),),
        ),
    )
    OBJECT_DETECTION = (
        "object-detection",
        TaskFacts(
            auto_class="AutoModelForObjectDetection",
            heads=auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
            choose_columns=choosing.image_and_objects,
            make_labels=pictures.object_labels,
            load_processor=processors.load_image_processor,
            make_examples=pictures.detected,
            reads=("label_column", "image_column"),
            loss="of classes and boxes, matched with the model's",
            formats=(("image, objects", "{bbox: [[left, top, width, height], ...], category: [...]}, in pixels"),),
        ),
    )
    AUDIO_CLASSIFICATION = (
        "audio-classification",
        TaskFacts(
            auto_class="AutoModelForAudioClassification",
            heads=auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES,
            choose_columns=choosing.audio_and_label,
            make_labels=labels.class_labels,
            load_processor=processors.load_feature_extractor,
            make_examples=sounds.heard,
            reads=("label_column", "audio_column"),
            loss="cross-entropy of the class",
            formats=(
                ("audio, label", "sounds, the names of their files, or {array: [...], sampling_rate: 16000}"),
                ("a folder", "folders of sounds, each with the name of its class (audiofolder)"),
            ),
        ),
    )
    CTC = (
        "ctc",
        TaskFacts(
            auto_class="AutoModelForCTC",
            heads=auto.MODEL_FOR_CTC_MAPPING_NAMES,
            choose_columns=choosing.audio_and_text,
            load_processor=processors.load_speech_processor,
            make_examples=sounds.transcribed,
            reads=("label_column", "audio_column"),
            loss="connectionist temporal classification: minus the log probability of the transcription",
            formats=(("audio, text", "sounds, and what is said in them"),),
        ),
    )


BASES = (
    auto.MODEL_MAPPING_NAMES,
    auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES,
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES,
)
"""Classes of pretrained models, on which a head for any task can be put."""
FINE_TUNE = "Fine-tune it, and give the folder in which you save it."


def choose_task(
    config: Any, table: datasets.Dataset, args: DataArguments, asked: Task | None, *, random_head: bool = False
) -> Task:
    """The task: by the checkpoint's head, or as asked; with ``random_head`` also by what the data holds."""
    possible, trained = [task for task in Task if config.model_type in task.facts.heads], trained_task(config)
    architectures = getattr(config, "architectures", None) or []
    if asked is not None:
        if possible and asked not in possible and asked is not trained:
            raise InputError(
                f"--task {asked.value} does not fit a model of type {config.model_type!r}, which can do "
                f"{', '.join(task.value for task in possible)}."
            )
        if not random_head and not is_trained_for(config, asked):
            raise InputError(_headless(architectures, trained, asked))
        return asked
    # what a head is put on: a base model, or one that only learned to fill in words
    if random_head and trained in (None, Task.MASKED_LM) and _class_names(*BASES).issuperset(architectures):
        for task in reversed(possible):  # images first: a table of images has labels as well
            if task.facts.suits is not None and task.facts.suits(table, args):
                return task
    if trained is not None:
        return trained
    if (other := other_task(architectures)) is not None:
        raise InputError(
            f"The model ({', '.join(architectures)}) is trained for {other}, which is none of the tasks of the command "
            f"line ({', '.join(Task)}). {from_python(architectures)}"
        )
    if architectures and all(map(_is_headless, architectures)) and not random_head:
        raise InputError(_headless(architectures, None, None))
    remedy = f"Give it with --task ({', '.join(possible)}); for" if possible else "For"
    raise InputError(
        f"Cannot tell the task of the model from its config.json ({', '.join(architectures) or 'no architecture'}): "
        f"expected a model for one of {', '.join(Task)}. {remedy} other tasks call hf_pacgen.pacgen(model, "
        "train_dataset, collate_fn=data_collator) from Python."
    )


def _is_headless(architecture: str) -> bool:
    bare = _class_names(auto.MODEL_MAPPING_NAMES, auto.MODEL_FOR_MASKED_IMAGE_MODELING_MAPPING_NAMES)
    return architecture in bare or architecture.endswith("ForPreTraining")


def _headless(architectures: Sequence[str], trained: Task | None, asked: Task | None) -> str:
    wanted = f" for {asked.value}" if asked is not None else ""
    which = f"--task {asked.value} " if asked is not None else ""
    if trained is not None:
        return (
            f"The model ({', '.join(architectures)}) is trained for {trained.value} and has no head{wanted}: a head "
            f"made at random would be scored in its place. Leave out --task, give a model trained{wanted}, or add "
            "--random-head to score that."
        )
    return (
        f"The model ({', '.join(architectures) or 'no architecture'}) is a base model: give it a trained "
        f"head{wanted}. {FINE_TUNE} To score it with a head made at random, add {which}--random-head."
    )


def is_trained_for(config: Any, task: Task) -> bool:
    """Whether a checkpoint may have the head of a task: by its architecture, or where it names none that is known."""
    architectures = getattr(config, "architectures", None) or []
    if trained_task(config) in (task, None) and not _class_names(auto.MODEL_MAPPING_NAMES).intersection(architectures):
        return True
    # of classes that two tasks know, such as BART's
    return bool(_class_names(task.facts.heads).intersection(architectures))


def check_settings(task: Task, args: DataArguments) -> None:
    """Raise if a setting was given that the task does not use: it would be ignored in silence."""
    used = {name for other in Task for name in other.facts.reads}
    for field in dataclasses.fields(args):
        is_given = getattr(args, field.name) != field.default
        if field.name in used and is_given and field.name not in task.facts.reads:
            those = [other.value for other in Task if field.name in other.facts.reads]
            raise InputError(
                f"--{field.name.replace('_', '-')} is for {', '.join(those)}, and the task is {task.value}. Leave it "
                "out, or give the --task that is meant."
            )


def trained_task(config: Any) -> Task | None:
    """The task whose head the checkpoint has, read from its architecture; None for a base model."""
    for architecture in getattr(config, "architectures", None) or []:
        for task in Task:
            if architecture in _class_names(task.facts.heads):
                return task
    own_code = getattr(config, "auto_map", None) or {}
    return next((task for task in Task if task.facts.auto_class in own_code), None)


def _class_names(*tables: Mapping[str, str | Sequence[str]]) -> set[str]:
    entries = [names for table in tables for names in table.values()]
    return {name for names in entries for name in ([names] if isinstance(names, str) else names)}
