"""Plot files are checked before a run and written as complete PNG files."""

import importlib
import sys
from pathlib import Path

import matplotlib.image
import pytest

from modeling_xlm_swcm.checkpoints import ConversionError, plots
from modeling_xlm_swcm.checkpoints.plots import as_label, check_plot_path, make_figure, save_figure


@pytest.mark.parametrize("name", ["plot.png", "plot.PNG", "new/folder/plot.png"])
def test_a_png_file_in_a_writable_folder_passes(tmp_path, name):
    check_plot_path(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_relative_path_passes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_plot_path(Path("plot.png"))


def test_other_files_are_refused(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("text")
    for name, words in (
        ("plot.pdf", r"must name a PNG file \(got .*plot\.pdf\)\. Use a name that ends in \.png\.$"),
        ("folder.png", r"must name a PNG file, but .*folder\.png is a folder\."),
        ("file/plot.png", r"cannot write .*plot\.png: .*file is not a writable folder\. Choose another folder\.$"),
    ):
        with pytest.raises(ConversionError, match=f"^--picture {words}"):
            check_plot_path(tmp_path / name, "--picture")


def test_a_figure_is_saved_whole(tmp_path, monkeypatch):
    figure, axes = make_figure(1, 2, size=(4, 3))
    assert axes.shape == (1, 2)
    axes[0, 1].plot([1, 2])
    path = tmp_path / "new" / "plot.png"
    save_figure(figure, path, dpi=50)
    assert matplotlib.image.imread(path).shape[:2] == (150, 200)
    before = path.read_bytes()

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(ConversionError, match=r"Cannot write .*plot\.png: No space left on device\."):
        save_figure(figure, path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_the_name_of_a_folder_is_a_plain_label():
    names = ["model", "_model", "m$x$y", r"m\$x$"]
    assert [*map(as_label, names)] == ["model", " _model", r"m\$x\$y", r"m\\$x\$"]
    figure, axes = make_figure(size=(1, 1))
    for name in names:
        axes[0, 0].plot([1, 2], label=as_label(name))
    assert len(axes[0, 0].legend().get_texts()) == len(names)


def test_figures_need_neither_pyplot_nor_a_display(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        # The module imports Matplotlib only when it draws.
        patch.setitem(sys.modules, "matplotlib", None)
        importlib.reload(plots)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    monkeypatch.setenv("MPLBACKEND", "tkagg")
    plots.save_figure(plots.make_figure(size=(1, 1))[0], tmp_path / "plot.png")
    assert (tmp_path / "plot.png").is_file()
