"""Texts are split into sentences that fit a model, and their outputs are joined as the sentences were."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_xlm_swcm.sentences_xlm_swcm import MAX_LOGITS, batches_by_length, join_texts, list_sentences, split_texts


# Characters that the rules know, and letters of scripts with and without spaces and small letters.
CHARACTERS = "abYЖж我見སགདངنى123.!?…。！？،؟།༎་,;:、，'\"“”«»()-–*#>|[] \n\r\t\u2028\u00a0\u0301_"
TEXTS = st.one_of(st.text(CHARACTERS, max_size=80), st.text(max_size=40))


def count_characters(sentences: list[str]) -> list[int]:
    return [len(sentence) for sentence in sentences]


def split(text: str, limit: int = 10**9, warn=pytest.fail) -> list[str]:
    return split_texts([text], count_characters, limit, warn)[0]


def sentences(text: str) -> list[str]:
    return split(text)[1::2]


@given(TEXTS, st.integers(1, 30))
def test_parts_are_the_text_and_sentences_fit(text, limit):
    parts = split(text, limit, lambda *warning: None)
    assert "".join(parts) == text and len(parts) % 2 == 1
    for sentence in parts[1::2]:
        assert sentence == sentence.strip() and 0 < len(sentence) <= limit


@given(st.lists(TEXTS, max_size=5))
def test_outputs_equal_to_the_sentences_give_the_text(texts):
    documents = split_texts(texts, count_characters, 10**9, pytest.fail)
    joined = join_texts(documents, list_sentences(documents))
    # A space is added where the text has none.
    assert ["".join(text.split()) for text in joined] == ["".join(text.split()) for text in texts]
    spaced = [parts if all(parts[2:-1:2]) else None for parts in documents]
    assert [text for text, parts in zip(joined, spaced, strict=True) if parts] == [
        text for text, parts in zip(texts, spaced, strict=True) if parts
    ]


@given(TEXTS, st.integers(1, 30))
def test_sentences_have_letters_or_digits_unless_they_are_cut(text, limit):
    for sentence in sentences(text):
        assert any(character.isalnum() for character in sentence)


@pytest.mark.parametrize(
    "expected",
    [
        ["He came.", "She left!", "Why?", "(No reason.)", '"Then it rained."', "It stopped…", "The end"],
        [
            "Dr. Smith met J. R. Jones of the U.N. Council at 7 p.m. on Jan. 5 in St. Louis.",
            "He paid $3.50 for No. 7.",
            "Approx. 5 people paid Rs. 500 each.",
        ],
        ['"Why?" he asked.', "See www.example.org for version 2.0.", "It works."],
        ["Вингер 60 млрд. АҚШ долларын тапты.", "Ол 2008 ж. 12 шілдеде келді.", "«Неге?» – деді А. Байтұрсынов."],
        ["Б. Дорж ирсэн.", "“Тийм үү?” гэж асуув.", "Тэр 3.5 км алхсан.", "Тэр ирнэ. “гэж хэлэв”."],
        ["ئۇ كەلدى.", "«قاچان كېلىدۇ؟» دېدى ئۇ.", "بىلمەيمەن؟", "ياق!", "2.5 كىلو ئالدى."],
        ["ང་སློབ་གྲྭར་འགྲོ་གི་ཡིན། །", "ཁོང་གིས་དཔེ་ཆ་བཀླགས་ནས། ཡི་གེ་བྲིས་སོང་།", "དེ་རིང་གནམ་གཤིས་ཡག་པོ་འདུག", "ཁྱེད་རང་ག་རེ་བྱེད་ཀྱི་ཡོད།"],
        ["ཟླ་ལྔ་པའི་ཚེས་བཅུ་ཉིན། ཁོང་ལྷ་ས་ནས་ཕེབས་སོང་།", "ད་དུང་། ང་གཉིས་ཀ། སློབ་གྲྭའི། ནང་ལ་ཡོད།"],
        ["ཁྱེད་རང་སློབ་གྲྭ་བ་ཡིན་ནམ་", "ཁོང་འདུག་གམ", "ཁོང་འགྲོ་གི་རེད། ཅེས་བཤད་སོང་།", "ཁོང་སེམས་ནང་ནམ་ལངས།"],
        ["यह किताब है।", "वह घर है।", "الکتاب یہاں ہے۔", "کیا؟", "ეს წიგნია.", "ይህ መጽሐፍ ነው።", "ᠮᠣᠩᠭᠣᠯ ᠬᠡᠯᠡ᠃"],
    ],
)
def test_sentences_of_a_line_with_spaces(expected):
    assert sentences(" ".join(expected)) == expected


@pytest.mark.parametrize(
    "expected",
    [
        [
            "他来了。",
            "“你好！”他说。",
            "她问：“为什么？”",
            "没有人回答……但是他笑了。",
            "圆周率是3.14。",
            "真的吗？！",
            "真的!",
            "好",
        ],
        ['他说："你好。"', '"再见。"', "“明天见。”", "（完）"],
        ["“很好。”他说，“明天见。”", "“很好。”", "他表示，他明天来。", "“再见。”", "她说：“好。”"],
        # Wrong marks: a quotation that ends with an opening mark, and one that does not end.
        ["她说：“很好。“", "“明天”是星期一。", "他说：“好。", "“今天”是星期天。"],
        ["これは本です。", "「はい。」", "そうですか？", "ええ。"],
    ],
)
def test_sentences_of_a_line_without_spaces(expected):
    assert sentences("".join(expected)) == expected


def test_lines_markers_and_marks_alone_are_between_sentences():
    text = "# Title\r\n\r\n  - One. Two\n\t2) Three\n（*）\n---\n\n> > Four\u2028一、 Five\n3、 Six ...\n①七\n"
    assert split(text) == [
        *("# ", "Title", "\r\n\r\n  - ", "One.", " ", "Two", "\n\t2) ", "Three", "\n（*）\n---\n\n> > ", "Four"),
        *("\u2028", "一、 Five", "\n3、 ", "Six ...", "\n①", "七", "\n"),
    ]


def test_cells_of_a_table_and_texts_between_tabs_are_sentences():
    text = "| One | 2.5 |\n|---|:-:|\n > | Three. Four | a \\| b |\nFive | six\t\t7 km\t8\n9\n"
    assert split(text) == [
        *("| ", "One", " | 2.5 |\n|---|:-:|\n > | ", "Three.", " ", "Four", " | ", "a \\| b", " |\n", "Five | six"),
        *("\t\t", "7 km", "\t8\n", "9", "\n"),
    ]


def test_markers_of_lists_are_between_sentences():
    text = "- [x] Eight\n- [ ] 9\na. Ten\n1.一\n1.5 km\n1.\tOne\na)\tTwo\n\t2)\nz. B. drei"
    assert split(text) == [
        *("- [x] ", "Eight", "\n- [ ] ", "9", "\na. ", "Ten", "\n1.", "一", "\n", "1.5 km"),
        *("\n1.\t", "One", "\na)\t", "Two", "\n\t2)\n", "z. B. drei", ""),
    ]


def test_an_output_without_a_space_before_it_gets_one_unless_it_is_chinese():
    documents = split_texts(["我们。你们！\n他们。", "One. Two."], count_characters, 99, pytest.fail)
    assert join_texts(documents, ["Біз.", "Сіз!", "Олар.", "一。", "二!"]) == ["Біз. Сіз!\nОлар.", "一。 二!"]
    assert join_texts(documents, ["私たち。", "あなた!", "彼ら。", "", ""])[0] == "私たち。あなた!\n彼ら。"
    assert join_texts(documents, ["Біз.", "", "Олар.", "", ""])[0] == "Біз.\nОлар."


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [
        ("one two, three four, five six", 15, ["one two,", "three four,", "five six"]),
        ("He has 1,000 sheep, and a dog", 20, ["He has 1,000 sheep,", "and a dog"]),
        ("one two three four", 10, ["one two", "three four"]),
        ("一二三，四五六、七八九", 4, ["一二三，", "四五六、", "七八九"]),
        ("བཀྲ་ཤིས་བདེ་ལེགས", 9, ["བཀྲ་ཤིས་", "བདེ་ལེགས"]),
        ("abcdefgh", 3, ["ab", "cd", "ef", "gh"]),
        ("n\u0303" * 3, 4, ["n\u0303", "n\u0303n\u0303"]),
    ],
)
def test_a_long_sentence_is_cut_and_named(text, limit, expected):
    messages = []
    parts = split(f"- {text}\nx", limit, lambda *warning: messages.append(warning))
    assert parts[1:-3:2] == expected and "".join(parts) == f"- {text}\nx"
    message = f"A sentence has {len(text)} tokens, but the maximum is {limit}. It is cut into {len(expected)} parts. "
    assert messages == [(0, f"{message}Shorten it, or add full stops. It starts with {text!r}.")]


@pytest.mark.parametrize(
    "unit", [".", "”", ". ", "།", "། ", "!", ",", ", ", "。", '"', "ག ", "a ", " ", "> ", "Ab. ", "。“", "ན་ནམ་ "]
)
def test_repeated_marks_take_linear_time(unit):
    start = time.process_time()
    split("a." + unit * 20000 + "x", 100, lambda *warning: None)
    assert time.process_time() - start < 10


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 200), st.integers(1, 12), st.integers(1, 4))
def test_batches_hold_every_row_once_and_keep_to_the_limits(lengths, batch_tokens, max_rows, beams):
    rows = {index: [0] * length for index, length in enumerate(lengths)}
    batches = list(batches_by_length(rows, batch_tokens, beams, MAX_LOGITS // max_rows // beams))
    assert sorted(index for batch in batches for index in batch) == list(rows)
    for batch in batches:
        assert len(batch) == 1 or beams * len(batch) * max(lengths[index] for index in batch) <= batch_tokens
        assert len(batch) <= max_rows
    # Two neighbouring batches do not fit into one.
    for first, second in zip(batches, batches[1:], strict=False):
        is_full = beams * lengths[first[0]] * (len(first) + 1) > batch_tokens
        assert (is_full or len(first) == max_rows) and second
