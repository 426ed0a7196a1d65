"""`edistill.toml` as typed settings: its tables, flags, and every contradiction between keys."""

from ensemble_distill.settings.loading import FILE_NAME, load_settings, settings_from, settings_toml
from ensemble_distill.settings.sections import (
    DataEntry,
    LastStageSettings,
    OutputSettings,
    PreprocessingSettings,
    Section,
    Settings,
    SplitSettings,
    StudentSettings,
    TeacherSettings,
    TrainSettings,
    UnitSettings,
    ViewSettings,
)

__all__ = [
    "FILE_NAME",
    "DataEntry",
    "LastStageSettings",
    "OutputSettings",
    "PreprocessingSettings",
    "Section",
    "Settings",
    "SplitSettings",
    "StudentSettings",
    "TeacherSettings",
    "TrainSettings",
    "UnitSettings",
    "ViewSettings",
    "load_settings",
    "settings_from",
    "settings_toml",
]
