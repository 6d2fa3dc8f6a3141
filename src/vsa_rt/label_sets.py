"""Label lists of published datasets, by name: what ``--set labels=NAME`` stands for.

Their order is this project's, alphabetical where nothing else is said: the published code numbers the classes as the
file system lists their folders, which is no order.
"""

from __future__ import annotations

#: Eight emotions of Mikels et al. 2005.
_MIKELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
#: Six basic emotions (Ekman 1992), with joy for happiness.
_EKMAN = ("anger", "disgust", "fear", "joy", "sadness", "surprise")

#: Name to labels, in the order of the scores.
LABEL_SETS: dict[str, tuple[str, ...]] = {
    # You et al. 2016, Building a Large Scale Dataset for Image Emotion Recognition (Flickr and Instagram).
    "fi": _MIKELS,
    # Panda et al. 2018, Contemplating Visual Emotions: Understanding and Overcoming Dataset Bias.
    "unbiasedemo": ("anger", "fear", "joy", "love", "sadness", "surprise"),
    # Kosti et al. 2017, Emotion Recognition in Context: the 26 discrete categories.
    "emotic": (
        "affection",
        "anger",
        "annoyance",
        "anticipation",
        "aversion",
        "confidence",
        "disapproval",
        "disconnection",
        "disquietment",
        "doubt-confusion",
        "embarrassment",
        "engagement",
        "esteem",
        "excitement",
        "fatigue",
        "fear",
        "happiness",
        "pain",
        "peace",
        "pleasure",
        "sadness",
        "sensitivity",
        "suffering",
        "surprise",
        "sympathy",
        "yearning",
    ),
    # Peng et al. 2015, A Mixed Bag of Emotions: votes for Ekman's six and neutral; the order of the dataset's readme.
    "emotion6": (*_EKMAN, "neutral"),
    # The same without neutral. Which of the two the CVPR 2023 paper takes for several labels is not said.
    "emotion6-6": _EKMAN,
    # Machajdik and Hanbury 2010, Affective Image Classification Using Features Inspired by Psychology and Art Theory:
    # votes over abstract paintings.
    "abstract": _MIKELS,
}
