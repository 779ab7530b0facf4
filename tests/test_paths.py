"""Which config is meant, and where the cache may be."""

import locale

import pytest
import yaml
from conftest import CONFIGS

from lit_spectral import cli
from lit_spectral.errors import InputError
from lit_spectral.lightning_cli import SpectralCLI
from lit_spectral.paths import cache_folder, config_file


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """The current folder, in which there are no configs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("given", ["configs/quickstart.yaml", "./configs/quickstart.yaml"])
def test_a_config_that_ships_is_found_from_anywhere(given):
    assert config_file(given).samefile(CONFIGS / "quickstart.yaml")


def test_a_file_of_ones_own_wins(elsewhere):
    (elsewhere / "configs").mkdir()
    (elsewhere / "configs" / "quickstart.yaml").touch()
    assert config_file("configs/quickstart.yaml").samefile(elsewhere / "configs" / "quickstart.yaml")


def test_only_configs_ship():
    with pytest.raises(InputError, match=r"there is no file configs/papers\.csv"):
        config_file("configs/papers.csv")


def test_several_configs_are_merged_whether_they_ship_or_not(elsewhere):
    (elsewhere / "own.yaml").write_text(yaml.safe_dump({"trainer": {"max_epochs": 7, "accelerator": "cpu"}}))
    given = ["--config=configs/fclora_roberta_mrpc.yaml", "--config", "own.yaml", "-c", '{"data": {"batch_size": 3}}']
    done = SpectralCLI(given, run=False)
    assert (done.trainer.max_epochs, done.datamodule.batch_size) == (7, 3)
    assert done.model.method.rank == 8  # of the first


@pytest.mark.parametrize(
    "verb",
    [
        *(["fit", flag, "configs/fclora_roberta_mprc.yaml"] for flag in ("-c", "--config")),
        *([verb, "--config=configs/fclora_roberta_mprc.yaml"] for verb in ("validate", "test", "predict", "compare")),
        ["quickstart", "configs/fclora_roberta_mprc.yaml"],
        ["fit", "--config=configs/lora_roberta_mrpc.yaml", "--config=configs/fclora_roberta_mprc.yaml"],
    ],
)
def test_a_config_that_there_is_not_is_one_line_that_names_a_like_one(verb, capsys, elsewhere):
    with pytest.raises(SystemExit) as stop:
        cli.main(verb)
    assert stop.value.code == 2
    captured = capsys.readouterr()
    (line,) = (line for line in captured.err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: config: there is no file configs/fclora_roberta_mprc.yaml in {elsewhere}; ")
    assert line.endswith("such as configs/fclora_roberta_mrpc.yaml")
    assert captured.out == ""


def test_a_folder_is_no_config(elsewhere):
    with pytest.raises(InputError, match="is a folder; give a file"):
        config_file(str(elsewhere))


def test_a_config_is_not_read_as_latin_1(elsewhere, monkeypatch):
    (elsewhere / "plain.yaml").write_bytes(b"model: x")
    (elsewhere / "own.yaml").write_bytes("# σ".encode())
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale=True: "ISO-8859-1")
    assert config_file("plain.yaml").name == "plain.yaml"
    with pytest.raises(InputError, match=r"own\.yaml holds more than ASCII, .* set PYTHONUTF8=1"):
        config_file("own.yaml")


def test_a_cache_that_can_not_be_made_is_said_with_what_to_set(elsewhere, monkeypatch):
    (elsewhere / "file").touch()
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", "file")
    with pytest.raises(InputError, match=r"the cache can't be made .* set LIT_SPECTRAL_CACHE to a folder"):
        cache_folder("spectra")


def test_a_tilde_in_the_caches_place_is_the_home(elsewhere, monkeypatch):
    monkeypatch.setenv("HOME", str(elsewhere))
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", "~/kept")
    assert cache_folder("spectra") == elsewhere / "kept" / "spectra"
    assert (elsewhere / "kept" / "spectra").is_dir()


def test_a_cache_that_may_not_be_written_to_is_no_mistake(read_only_folder, monkeypatch):
    monkeypatch.setenv("LIT_SPECTRAL_CACHE", str(read_only_folder))
    assert cache_folder("spectra") == read_only_folder / "spectra"


def test_without_a_home_the_cache_is_asked_for(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("LIT_SPECTRAL_CACHE")
    monkeypatch.setattr("pathlib.Path.home", no_home)
    with pytest.raises(InputError, match="set LIT_SPECTRAL_CACHE to a folder"):
        cache_folder("spectra")
