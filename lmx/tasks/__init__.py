"""One file per task; a task is a record of functions (`lmx.types.Task`)."""

from lmx.tasks.code_generation import code_generation
from lmx.tasks.generative_question_answering import generative_question_answering
from lmx.tasks.instruction_tuning import instruction_tuning
from lmx.tasks.language_modelling import language_modelling
from lmx.tasks.likelihood import likelihood
from lmx.tasks.masked_language_modelling import masked_language_modelling
from lmx.tasks.multiple_choice import multiple_choice
from lmx.tasks.question_answering import question_answering
from lmx.tasks.retrieval import retrieval
from lmx.tasks.semantic_search import semantic_search
from lmx.tasks.span_corruption import span_corruption
from lmx.tasks.summarization import extractive_summarization, summarization
from lmx.tasks.text_classification import text_classification
from lmx.tasks.text_to_text import text_to_text
from lmx.tasks.token_classification import token_classification
from lmx.tasks.translation import translation
from lmx.tasks.word_vectors import word_vectors

__all__ = [
    'code_generation',
    'extractive_summarization',
    'generative_question_answering',
    'instruction_tuning',
    'language_modelling',
    'likelihood',
    'masked_language_modelling',
    'multiple_choice',
    'question_answering',
    'retrieval',
    'semantic_search',
    'span_corruption',
    'summarization',
    'text_classification',
    'text_to_text',
    'token_classification',
    'translation',
    'word_vectors',
]
