"""`edistill.toml` as typed settings: its tables, its flags, and every contradiction between keys."""

from ensemble_distill.settings.loading import FILE_NAME, load_settings, settings_from, settings_here, settings_toml
from ensemble_distill.settings.section import Section
from ensemble_distill.settings.sections import (
    DataEntry,
    LastStageSettings,
    OutputSettings,
    Settings,
    SplitSettings,
    StudentSettings,
    TrainSettings,
    ViewSettings,
)
from ensemble_distill.settings.teachers import MemberSettings, PreprocessingSettings, TeacherSettings, UnitSettings

__all__ = [
    "FILE_NAME",
    "DataEntry",
    "LastStageSettings",
    "MemberSettings",
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
    "settings_here",
    "settings_toml",
]
