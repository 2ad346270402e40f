"""COVID-BLUES: videos of six BLUE points a patient, with severity and clinical variables."""

from tfds_builders.covid_blues.covid_blues import CovidBlues, CovidBluesConfig, covid_blues_config

__all__ = ["CovidBlues", "CovidBluesConfig", "covid_blues_config"]
