"""Sources and references: from tables, and from files in the layouts of four benchmarks."""

import json
from pathlib import Path

import pytest
from huggingface_hub.errors import OfflineModeIsEnabled
from support.evaluation import SOURCES, TARGETS, write_files

from modeling_xlm_swcm.corpora.bad_rows import DataError
from modeling_xlm_swcm.evaluation.benchmarks import BENCHMARKS, find_benchmark
from modeling_xlm_swcm.evaluation.languages import match_code, normalize_code, split_spellings
from modeling_xlm_swcm.evaluation.pairs import read_data


EXPECTED = list(zip(SOURCES, TARGETS, strict=True))
LINES = {"zh": "\n".join(SOURCES) + "\n", "bo": "\n".join(TARGETS) + "\n"}
ROWS = {
    code: [{"id": place, "iso_639_3": code, "text": text, "url": "x"} for place, text in enumerate(texts)]
    for code, texts in {"zh": SOURCES, "bo": TARGETS}.items()
}
ARTICLES = [
    {"id": str(place), "zh": source, "bo": target, "en": "x"} for place, (source, target) in enumerate(EXPECTED)
]
TITLES = [{"id": "1", "title": TARGETS[0], "content": TARGETS[1] * 3}]
CSV = f'id,title,content,average_score\n1,{TARGETS[0]},"{TARGETS[1]}\n{TARGETS[2]}",6\n'
TRANSLATIONS = {
    "FLORES+ on the Hub": {"devtest/cmn_Hans.jsonl": ROWS["zh"], "devtest/bod_Tibt.jsonl": ROWS["bo"][::-1]},
    "FLORES+ release": {
        "floresp/devtest/devtest.cmn_Hans": LINES["zh"],
        "floresp/devtest/devtest.bod_Tibt": LINES["bo"],
    },
    "FLORES-200": {"devtest/zho_Hans.devtest": LINES["zh"], "devtest/bod_Tibt.devtest": LINES["bo"]},
    "NTREX": {
        "NTREX-128/newstest2019-ref.zho-CN.txt": LINES["zh"],
        "NTREX-128/newstest2019-ref.zho-TW.txt": "x\n",
        "NTREX-128/newstest2019-ref.bod.txt": LINES["bo"],
        "NTREX-128/newstest2019-src.eng.txt": "x\n",
    },
    "NTREX on the Hub": {
        "data/zho-CN_Hans/newstest2019-ref.zho-CN.txt": LINES["zh"],
        "data/bod_Tibt/newstest2019-ref.bod.txt": LINES["bo"],
    },
    "MiLiC-Eval": {
        "translation_article/bo/test.json": ARTICLES,
        "translation_article/ug/test.json": [],
        "translation_dialogue/bo/test.json": [],
    },
}


def texts_of(pairs) -> list[tuple[str, str]]:
    return [(pair.source, pair.target) for pair in pairs]


class TestLanguages:
    @pytest.mark.parametrize(
        ("code", "names"),
        [
            (("zh", "Hans"), "zh zho_Hans cmn_Hans zho-CN zh_CN __zh__ zh-Hans"),
            (("zh", "Hant"), "zho_Hant zh-TW zho-TW"),
            (("bo", "Tibt"), "bo bod bod_Tibt"),
            (("ug", "Arab"), "ug uig uig_Arab"),
            (("kk", "Cyrl"), "kk kaz kaz_Cyrl kk_KZ"),
            (("kk", "Arab"), "kk-Arab kaz_Arab"),
            (("mn", "Cyrl"), "mn mon khk_Cyrl mn_MN"),
            (("mn", "Mong"), "mn-Mong mon_Mong"),
        ],
    )
    def test_all_spellings_are_one_language_in_one_script(self, code, names):
        assert {normalize_code(name) for name in names.split()} == {code}

    def test_a_match_has_the_same_script_and_the_shortest_name(self):
        assert match_code("kk-Arab", ["kaz_Cyrl", "kaz"]) is None
        assert match_code("en", ["eng-GB", "eng", "eng-US"]) == "eng"
        assert match_code("zh", ["zho_Hant", "cmn_Hans"], ["zho_Hant"]) == "zho_Hant"

    def test_spellings_have_two_parts(self):
        assert split_spellings(["kk-Arab=kk", "kk-Arab=kaz"]) == {"kk-Arab": ["kk", "kaz"]}
        with pytest.raises(DataError, match='`codes` cannot be "kk". Use CODE=NAME'):
            split_spellings(["kk"])


class TestTables:
    def test_columns_are_found_in_any_spelling(self, tmp_path):
        rows = [{"zho_Hans": source, "bod_Tibt": target} for source, target in EXPECTED]
        write_files(tmp_path, {"wide.jsonl": rows})
        data = read_data(str(tmp_path / "wide.jsonl"), ["bo"], "zh", max_samples=3)
        assert texts_of(data.pairs["zh-bo"]) == EXPECTED[:3]
        assert (data.name, data.task) == ("wide.jsonl", "translation")
        assert data.pairs["zh-bo"][1].place.endswith("wide.jsonl:2")

    def test_titles_need_no_source(self, tmp_path):
        write_files(tmp_path, {"titles.jsonl": [{"text": "长", "title": "短"}]})
        data = read_data(str(tmp_path / "titles.jsonl"), ["zh"], None)
        assert (texts_of(data.pairs["zh"]), data.task) == ([("长", "短")], "summarization")

    def test_titles_of_several_languages_are_told_apart(self, tmp_path):
        rows = [{"text": code, "title": code, "lang": code} for code in ("zho_Hans", "kk", "zh")]
        write_files(tmp_path, {"titles.jsonl": rows})
        data = read_data(str(tmp_path / "titles.jsonl"), ["zh", "kk"], None, max_samples=2)
        assert [texts_of(pairs) for pairs in data.pairs.values()] == [[("zho_Hans",) * 2, ("zh",) * 2], [("kk", "kk")]]

    @pytest.mark.parametrize("language", ["", None])
    def test_titles_without_their_language_are_bad_rows(self, tmp_path, language):
        rows = [{"text": "a", "title": "b", "lang": code} for code in ("zh", language)]
        write_files(tmp_path, {"titles.jsonl": rows})
        with pytest.raises(DataError, match=r'titles.jsonl:2 .* "lang"'):
            read_data(str(tmp_path / "titles.jsonl"), ["zh"], None)

    def test_two_languages_do_not_have_one_column(self, table):
        with pytest.raises(DataError, match="zh and bo both have the name zh in .*test.tsv. Correct `codes`."):
            read_data(str(table), ["bo"], "zh", spellings={"bo": ["zh"]})

    def test_a_subset_of_a_file_is_refused(self, table):
        with pytest.raises(DataError, match='`subset="dev"` has no effect on the file'):
            read_data(str(table), ["bo"], "zh", subset="dev")

    @pytest.mark.parametrize(
        ("target", "source", "message"),
        [
            ("ug", "zh", r'has no text in ug \(found: zh, bo\).*`codes=\["ug=NAME"\]`'),
            ("bo", None, "has no columns of texts and titles .*pass `source`"),
        ],
    )
    def test_a_missing_column_is_named(self, table, target, source, message):
        with pytest.raises(DataError, match=message):
            read_data(str(table), [target], source)

    def test_columns_of_any_json_row_are_found(self, tmp_path):
        write_files(tmp_path, {"rows.jsonl": [{"zh": "书", "kk": "а"}, {"zh": "河", "bo": "ཆུ"}]})
        data = read_data(str(tmp_path / "rows.jsonl"), ["bo"], "zh", skip_bad_rows=True)
        assert texts_of(data.pairs["zh-bo"]) == [("河", "ཆུ")] and data.skipped == {"zh-bo": 1}

    def test_bad_rows_stop_or_are_skipped(self, table):
        table.write_text(table.read_text(encoding="utf-8") + "书\t\n", encoding="utf-8")
        with pytest.raises(DataError, match=r'test.tsv:6 is empty in the column "bo".*pass `skip_bad_rows=True`'):
            read_data(str(table), ["bo"], "zh")
        assert len(read_data(str(table), ["bo"], "zh", skip_bad_rows=True).pairs["zh-bo"]) == 4

    def test_a_table_of_titles_for_a_translation_is_named(self, tmp_path):
        write_files(tmp_path, {"titles.jsonl": [{"text": "书", "summary": "书"}]})
        with pytest.raises(DataError, match=r"titles.jsonl holds texts and titles \(columns: text, summary\). Leave"):
            read_data(str(tmp_path / "titles.jsonl"), ["bo"], "zh")

    def test_a_file_that_is_missing_or_empty_or_no_table_is_named(self, tmp_path):
        write_files(tmp_path, {"zh.txt": "书\n"})
        for source, columns in (("zh", "zh and bo"), (None, "text and summary")):
            with pytest.raises(DataError, match=f"zh.txt is plain text. .* with the columns {columns}.$"):
                read_data(str(tmp_path / "zh.txt"), ["bo"], source)
        with pytest.raises(DataError, match="missing.tsv does not exist"):
            read_data(str(tmp_path / "missing.tsv"), ["bo"], "zh")
        write_files(tmp_path, {"empty.tsv": "zh\tbo\n"})
        with pytest.raises(DataError, match="has no row for zh-bo"):
            read_data(str(tmp_path / "empty.tsv"), ["bo"], "zh")


class TestParallelFiles:
    """Files of two languages, which belong together by id or by line."""

    SOURCE, REFERENCE, UYGHUR = (f"newstest2019-{name}.txt" for name in ("src.zho-CN", "ref.bod", "ref.uig"))

    def write_lines(self, folder: Path, **lines: bytes):
        for name, content in lines.items():
            (folder / getattr(self, name)).write_bytes(content)

    def write_rows(self, folder: Path, sources: list, references: list):
        write_files(folder, {"devtest/cmn_Hans.jsonl": sources, "devtest/bod_Tibt.jsonl": references})

    def test_bad_lines_do_not_move_the_pairs(self, tmp_path):
        self.write_lines(tmp_path, SOURCE=b"a1\nb2\n\xff\nd4\n", REFERENCE=b"\xfe\nB2\nC3\nD4\n")
        data = read_data(str(tmp_path), ["bo"], "zh", skip_bad_rows=True)
        assert texts_of(data.pairs["zh-bo"]) == [("b2", "B2"), ("d4", "D4")]
        assert data.skipped == {"zh-bo": 2}
        with pytest.raises(DataError, match=r"2 rows .*zho-CN.txt:3 is not UTF-8; .*bod.txt:1 is not UTF-8"):
            read_data(str(tmp_path), ["bo"], "zh")

    def test_a_bad_line_in_one_file_is_named_or_skipped_for_each_language(self, tmp_path):
        self.write_lines(tmp_path, SOURCE=b"a1\n\xff\n", REFERENCE=b"A1\nB2\n", UYGHUR=b"AA\nBB\n")
        with pytest.raises(DataError, match=r"zho-CN.txt:2 is not UTF-8"):
            read_data(str(tmp_path), ["bo"], "zh")
        data = read_data(str(tmp_path), ["bo", "ug"], "zh", skip_bad_rows=True)
        assert [texts_of(pairs) for pairs in data.pairs.values()] == [[("a1", "A1")], [("a1", "AA")]]
        assert data.skipped == {"zh-bo": 1, "zh-ug": 1}

    def test_a_bad_line_does_not_hide_a_missing_line(self, tmp_path):
        self.write_lines(tmp_path, SOURCE=b"a1\nb2\nc3\n", REFERENCE=b"\xfe\nB2\n")
        with pytest.raises(DataError, match=r"zho-CN.txt \(3 rows\) and .*bod.txt \(2 rows\) do not belong together"):
            read_data(str(tmp_path), ["bo"], "zh", skip_bad_rows=True)

    @pytest.mark.parametrize("bad", [b"\0", b"\xff", b"a\rb"])
    def test_a_bad_last_line_does_not_hide_that_an_earlier_line_is_missing(self, tmp_path, bad):
        self.write_lines(tmp_path, SOURCE=b"a1\nc3\nd4\n", REFERENCE=b"A1\nB2\nC3\n" + bad + b"\n")
        message = r"\(3 rows\) and .*bod.txt \(4 rows\) do not belong together: their numbers of rows differ\. Correct"
        for skip_bad_rows in (False, True):
            with pytest.raises(DataError, match=message):
                read_data(str(tmp_path), ["bo"], "zh", skip_bad_rows=skip_bad_rows)

    @pytest.mark.parametrize(
        ("references", "message"),
        [
            ([{"id": 1}, {"id": "2"}], r"cmn_Hans.jsonl has no usable row with the id \"2\"\."),
            ([{"id": 1}], r"\(2 rows\) and .*bod_Tibt.jsonl \(1 row\) .*: devtest/bod_Tibt.jsonl .* the id 2\."),
            ([{}, {}], r"devtest/bod_Tibt.jsonl has no ids\."),
        ],
    )
    def test_a_missing_id_is_named(self, tmp_path, references, message):
        sources = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
        self.write_rows(tmp_path, sources, [{"text": "A"} | row for row in references])
        with pytest.raises(DataError, match=message):
            read_data(str(tmp_path), ["bo"], "zh", skip_bad_rows=True)

    def test_files_without_ids_are_paired_by_line(self, tmp_path):
        self.write_rows(tmp_path, [{"text": "a"}, {"text": "b"}], [{"text": "A"}, {"text": "B"}])
        assert texts_of(read_data(str(tmp_path), ["bo"], "zh").pairs["zh-bo"]) == [("a", "A"), ("b", "B")]

    def test_a_row_without_an_id_in_a_file_with_ids_is_bad(self, tmp_path):
        self.write_rows(tmp_path, [{"id": 1, "text": "a"}, {"text": "b"}], [{"id": 1, "text": "A"}])
        with pytest.raises(DataError, match=r'cmn_Hans.jsonl:2 has no text or number in the column "id"\. Correct'):
            read_data(str(tmp_path), ["bo"], "zh")

    def test_a_boolean_id_is_no_number(self, tmp_path):
        rows = [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
        self.write_rows(tmp_path, [{"id": True, "text": "x"}, rows[0]], rows)
        data = read_data(str(tmp_path), ["bo"], "zh", skip_bad_rows=True)
        assert texts_of(data.pairs["zh-bo"]) == [("a", "a")]

    def test_all_bad_rows_are_named_by_their_path_in_the_benchmark(self, tmp_path):
        self.write_rows(tmp_path, ROWS["zh"][:2], ROWS["bo"][:2])
        with (tmp_path / "devtest" / "cmn_Hans.jsonl").open("a") as file:
            file.write('{bad\n{"id": [1]}\n')
        with pytest.raises(DataError, match=r"used: devtest/cmn_Hans.jsonl:3 is .*; devtest/cmn_Hans.jsonl:4 has"):
            read_data(str(tmp_path), ["bo"], "zh")

    @pytest.mark.parametrize(
        ("identity", "message"),
        [
            (1, "cmn_Hans.jsonl:1 has the same id as another row; devtest/cmn_Hans.jsonl:2 has the same id"),
            (None, r'cmn_Hans.jsonl:1 has no text or number in the column "id" \(found type NoneType\)'),
            ([1], r'cmn_Hans.jsonl:1 has no text or number in the column "id" \(found type list\)'),
        ],
    )
    def test_rows_need_different_ids(self, tmp_path, identity, message):
        rows = [{"id": identity, "text": text} for text in "ab"] + [{"id": 3, "text": "c"}]
        self.write_rows(tmp_path, rows, rows)
        with pytest.raises(DataError, match=message):
            read_data(str(tmp_path), ["bo"], "zh")
        assert texts_of(read_data(str(tmp_path), ["bo"], "zh", skip_bad_rows=True).pairs["zh-bo"]) == [("c", "c")]

    def test_a_missing_column_is_named(self, tmp_path):
        self.write_rows(tmp_path, [{"id": 1, "sentence": "a"}], [{"id": 1, "sentence": "b"}])
        with pytest.raises(DataError, match=r'cmn_Hans.jsonl:1 has no column "text" \(columns: id, sentence\)'):
            read_data(str(tmp_path), ["bo"], "zh")


class TestBenchmarks:
    @pytest.mark.parametrize("layout", TRANSLATIONS)
    def test_translations_are_read_in_their_layout(self, tmp_path, layout):
        write_files(tmp_path, TRANSLATIONS[layout])
        data = read_data(str(tmp_path), ["bo"], "zh")
        assert texts_of(data.pairs["zh-bo"]) == EXPECTED
        assert {(pair.src_lang, pair.tgt_lang) for pair in data.pairs["zh-bo"]} == {("zh", "bo")}
        assert data.name.startswith(f"{tmp_path.name} (")
        assert texts_of(read_data(str(tmp_path), ["zh"], "bo").pairs["bo-zh"])[0] in [
            (target, source) for source, target in EXPECTED
        ]

    @pytest.mark.parametrize(
        ("name", "content"),
        [("title_generation/bo/test.json", TITLES), ("bo/average_score_4_or_higher.csv", CSV)],
    )
    def test_titles_are_read_in_their_layout(self, tmp_path, name, content):
        write_files(tmp_path, {name: content})
        data = read_data(str(tmp_path), ["bo"], None)
        ((source, title),) = texts_of(data.pairs["bo"])
        assert title == TARGETS[0] and source.startswith(TARGETS[1])
        assert data.task == "summarization"
        assert data.pairs["bo"][0].place.startswith(f"{name}:")
        with pytest.raises(DataError, match=r"is for summarization.*Remove `source`"):
            read_data(str(tmp_path), ["bo"], "zh")

    def test_kazakh_and_mongolian_have_the_scripts_of_the_benchmark(self, tmp_path):
        write_files(tmp_path, {"translation_dialogue/kk/test.json": [{"id": 1, "zh": "书", "kk": "كىتاپ"}]})
        assert texts_of(read_data(str(tmp_path), ["kk-Arab"], "zh").pairs["zh-kk-Arab"]) == [("书", "كىتاپ")]
        with pytest.raises(DataError, match=r"has no text in kk \(found: kk-Arab"):
            read_data(str(tmp_path), ["kk"], "zh")
        spellings = {"kk": ["kk-Arab"]}
        assert texts_of(read_data(str(tmp_path), ["kk"], "zh", spellings=spellings).pairs["zh-kk"]) == [
            ("书", "كىتاپ")
        ]

    def test_files_that_do_not_belong_together_are_refused(self, tmp_path):
        write_files(tmp_path, {"devtest/zho_Hans.devtest": "a\nb\n", "devtest/bod_Tibt.devtest": "a\n"})
        with pytest.raises(DataError, match=r"zho_Hans.devtest \(2 rows\) and .*bod_Tibt.devtest \(1 row\)"):
            read_data(str(tmp_path), ["bo"], "zh")

    def test_subsets_and_folders_are_checked(self, tmp_path):
        write_files(tmp_path, {"dev/zho_Hans.dev": "a\n", "dev/bod_Tibt.dev": "b\n", "notes.txt": "x"})
        assert find_benchmark(str(tmp_path)).subset == "dev"
        with pytest.raises(DataError, match="flores\\+ has no subset train. Use one of: devtest, dev"):
            find_benchmark(str(tmp_path), "train")
        missing = r"has no file of the subset devtest \(found: dev\)\. Use another subset, or download the files\.$"
        with pytest.raises(DataError, match=missing):
            find_benchmark(str(tmp_path), "devtest")
        (tmp_path / "dev" / "zho_Hans.dev").unlink()
        (tmp_path / "dev" / "bod_Tibt.dev").unlink()
        with pytest.raises(DataError, match="holds no known benchmark"):
            find_benchmark(str(tmp_path), "devtest")
        assert find_benchmark("someone/else") is None
        with pytest.raises(DataError, match=r"There is no file or benchmark FLORES\. Did you mean flores\+\?$"):
            find_benchmark("FLORES")

    def test_the_files_of_the_hub_are_fetched_one_by_one(self, tmp_path, monkeypatch):
        files = TRANSLATIONS["FLORES+ on the Hub"] | {"devtest/eng_Latn.jsonl": [], "README.md": "x"}
        write_files(tmp_path, files)
        fetched = []

        def fetch(repo_id, name, repo_type):
            fetched.append((repo_id, name, repo_type))
            return str(tmp_path / name)

        monkeypatch.setattr("modeling_xlm_swcm.evaluation.benchmarks.hf_hub_download", fetch)
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo_id, repo_type: [*files])
        for name in ("flores+", "openlanguagedata/flores_plus"):
            data = read_data(name, ["bo"], "zh", subset="devtest")
            assert texts_of(data.pairs["zh-bo"]) == EXPECTED
            assert data.name == "openlanguagedata/flores_plus (devtest)"
        assert {(repo, kind) for repo, _, kind in fetched} == {("openlanguagedata/flores_plus", "dataset")}
        assert {name for _, name, _ in fetched} == {"devtest/cmn_Hans.jsonl", "devtest/bod_Tibt.jsonl"}

    def test_without_the_hub_a_folder_is_advised(self, monkeypatch):
        def fail(self, repo_id, repo_type):
            raise OfflineModeIsEnabled

        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", fail)
        message = r"cannot be reached.*If you have the files of flores\+, pass their folder instead of flores\+\.$"
        with pytest.raises(DataError, match=message):
            find_benchmark("flores+")

    def test_a_changed_layout_on_the_hub_is_named(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda self, repo_id, repo_type: ["README.md"])
        for benchmark in BENCHMARKS:
            with pytest.raises(DataError, match="has other files than xlm-swcm expects"):
                find_benchmark(benchmark.name)


def test_rows_with_columns_of_one_language_are_not_two(tmp_path):
    path = Path(tmp_path / "one.json")
    path.write_text(json.dumps([{"zh": "书", "other": "x"}]), encoding="utf-8")
    with pytest.raises(DataError, match="no text in bo"):
        read_data(str(path), ["bo"], "zh")
