"""Terms of a glossary get a bias until a text has them, and only for the sources that need them."""

import pytest
import torch
from support.encoders import roberta_tokenizer, word_piece_tokenizer, xlm_roberta_tokenizer

from modeling_xlm_swcm.terms_xlm_swcm import Terms


@pytest.fixture(scope="module")
def tokenizer():
    return xlm_roberta_tokenizer()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("我们早上去了河边。", {"河边"}),
        ("河 and 河边", {"河", "河边"}),
        ("The RIVER’s bank", {"River"}),
        ("A driver", set()),
        ("no wind  at\tall", {"wind at"}),
        ("өзенге", {"өзен"}),
        ("", set()),
    ],
)
def test_a_source_has_the_longest_terms_at_the_start_of_a_word(tokenizer, text, found):
    sources = ["河", "河边", "River", "wind at", "өзен"]
    row = Terms(dict.fromkeys(sources, "no wind"), tokenizer).find(text)
    assert row.shape == (1, 5)
    assert {source for source, is_found in zip(sources, row[0], strict=True) if is_found} == found


@pytest.mark.parametrize("make_tokenizer", [xlm_roberta_tokenizer, roberta_tokenizer, word_piece_tokenizer])
@pytest.mark.parametrize(
    ("term", "texts"),
    [
        ("wind", ["wind stays", "no wind", "no (wind)"]),
        ("河边", ["河边没有风", "我们早上去了河边，"]),
        ("ཞོགས་པ", ["ཞོགས་པ་བདེ་ལེགས།", "ང་ཚོས ཞོགས་པ"]),
    ],
)
def test_the_tokens_of_a_term_are_its_tokens_in_a_text(make_tokenizer, term, texts):
    tokenizer = make_tokenizer()
    try:
        (made,) = Terms({"a": term}, tokenizer).terms.values()
    except ValueError as error:
        assert f'"{term}" as <unk>' in str(error)
        assert tokenizer.unk_token_id in tokenizer(term)["input_ids"]
        return
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert any(
            ids[start : start + len(variant)] == variant for variant in made.variants for start in range(len(ids))
        ), (text, tokenizer.tokenize(text), made)


@pytest.mark.parametrize("term", ["སྒོར", "སྒོར་"])
def test_the_last_token_of_a_tibetan_term_can_have_the_tsheg(term):
    pieces = [(piece, -1.0) for piece in ("▁", "སྒ", "ོར", "ོར་", "་", ",", "(")]
    tokenizer = xlm_roberta_tokenizer(pieces=pieces)
    (made,) = Terms({"元": term}, tokenizer).terms.values()
    tokens = [["སྒ", "ོར"], ["སྒ", "ོར་"]]
    expected = {(*start, *ids) for start in ((), ("▁",)) for ids in tokens}
    assert {tuple(tokenizer.convert_ids_to_tokens(variant)) for variant in made.variants} == expected
    assert made.target == "སྒོར"


def test_a_text_gets_the_bias_of_whole_terms_and_only_once(tokenizer):
    terms = Terms({"river": "no wind", "bank": "boat"}, tokenizer)
    found = torch.cat([terms.find(text) for text in ("the river", "a bank of the river", "a driver")])
    (processor,) = terms.processors(found, 1.5)
    vocab_size = len(tokenizer)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    def total_bias(text: str, source: int) -> float:
        """Return the sum of the biases of a text as the second beam of a source."""
        ids, total = [0, *encode(text)], 0.0
        for place in range(1, len(ids)):
            rows = torch.tensor([[0] * place] * 6)
            rows[2 * source + 1] = torch.tensor(ids[:place])
            bias = processor(rows, torch.zeros(6, vocab_size))
            total += bias[2 * source + 1, ids[place]].item()
            assert not bias[4:].any()
        return total

    whole, begun = encode("no wind"), encode("no")
    assert len(whole) > len(begun) > 0 and whole[: len(begun)] == begun
    assert total_bias("no wind", 0) == 1.5 * len(whole) == total_bias("the boat no wind no wind", 0)
    assert total_bias("no quiet morning", 0) == 0
    assert total_bias("boat, no wind", 1) == 1.5 * (len(whole) + len(encode("boat")))
    # A begun term: the next token gets the bias, and all others lose what the term got before.
    bias = processor(torch.tensor([[0, *begun]] * 3), torch.zeros(3, vocab_size))
    next_token = whole[len(begun)]
    assert bias[0, next_token] == 1.5
    assert (bias[0, torch.arange(vocab_size) != next_token] == -1.5 * len(begun)).all()
    assert terms.processors(found[2:]) == []


def test_a_text_has_a_term_as_the_tokenizer_decodes_it():
    """Otherwise a text would get the bias of the term again and again."""
    tokenizer = word_piece_tokenizer(do_lower_case=True)
    terms = Terms({"no": "No  wïnd,"}, tokenizer)
    found = terms.find("NO")
    (processor,) = terms.processors(found)
    written = tokenizer("a boat, no wind, at all", return_tensors="pt")["input_ids"]
    assert not processor(written, torch.zeros(1, len(tokenizer))).any()
    assert terms.list_missing(found[0], tokenizer.decode(written[0])) == []
    assert terms.list_missing(found[0], "no boat, wind") == ["No  wïnd,"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("river\tno wind\nbank boat\n", r"terms.tsv:2 is 'bank boat'. Write a source term, one tab and a target term"),
        ("\n\nriver\t\n", r"terms.tsv:3 is 'river\\t'."),
        ("\tboat", r"terms.tsv:1 is '\\tboat'."),
        ("river\tno\twind", r"terms.tsv:1 is 'river\\tno\\twind'."),
        ("river\tboat\nRiver\twind", 'terms.tsv:2: the source term "River" is given twice.'),
        ("river\tქართული", 'terms.tsv:1: the tokenizer reads the target term "ქართული" as <unk>. Remove the term.'),
        ("\ufeff\n", "terms.tsv has no terms."),
        (b"\xff\xfe", "terms.tsv cannot be read. Pass a UTF-8 text file."),
        (None, "terms.tsv does not exist. Check the path."),
    ],
)
def test_bad_lines_of_a_terms_file_are_named(tokenizer, tmp_path, content, message):
    path = tmp_path / "terms.tsv"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Terms(path, tokenizer)


def test_a_term_that_is_longer_than_any_output_is_refused():
    tokenizer = xlm_roberta_tokenizer()
    tokenizer.model_max_length = 30
    with pytest.raises(ValueError, match=r"^terms: the target term has \d+ tokens, but the model has at most 30\."):
        Terms({"river": "boat " * 40}, tokenizer)


@pytest.mark.parametrize("strength", [0, -1, float("nan"), float("inf"), "2", True])
def test_a_wrong_strength_is_refused(tokenizer, strength):
    terms = Terms({"river": "boat"}, tokenizer)
    with pytest.raises(ValueError, match="^terms_strength must be a number above 0"):
        terms.processors(terms.find("river"), strength)
    with pytest.raises(ValueError, match="^terms has the item 'river': None. Pass two texts"):
        Terms({"river": None}, tokenizer)
    with pytest.raises(ValueError, match="^terms is of type int. Pass a dict or the path of a file."):
        Terms(5, tokenizer)
