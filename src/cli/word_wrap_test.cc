// What a terminal of that width shows after the pieces, by a small terminal that knows the sequences used.
#include "cli/word_wrap.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace still {
namespace {

// Lines of ASCII text on a terminal; fails the test on a line longer than `width`.
std::vector<std::string> lines_shown(const std::vector<std::string>& pieces, int width) {
  WordWrap wrap(width);
  std::string written;
  for (const std::string& piece : pieces) written += wrap.wrap(piece);
  std::vector<std::string> lines(1);
  for (std::size_t i = 0; i < written.size(); ++i) {
    if (written[i] == '\n') {
      lines.emplace_back();
    } else if (written[i] == '\033') {
      const std::size_t end = written.find_first_of("DK", i);
      if (written[end] == 'D') {
        const int n = std::stoi(written.substr(i + 2, end - i - 2));
        lines.back().resize(lines.back().size() - static_cast<std::size_t>(n));
      }
      i = end;
    } else {
      lines.back() += written[i];
      EXPECT_LE(lines.back().size(), static_cast<std::size_t>(width) - 1) << lines.back();
    }
  }
  return lines;
}

using Lines = std::vector<std::string>;

TEST(WordWrap, BreaksBetweenWordsHoweverTheTextIsCut) {
  const std::string text = "one two three four five six seven eight";
  const Lines expected = {"one two three four ", "five six seven ", "eight"};
  EXPECT_EQ(lines_shown({text}, 20), expected);
  Lines characters;
  for (const char c : text) characters.emplace_back(1, c);
  EXPECT_EQ(lines_shown(characters, 20), expected);
}

TEST(WordWrap, PartsAWordThatIsLongerThanALine) {
  EXPECT_EQ(lines_shown({std::string(45, 'x')}, 20),
            (Lines{std::string(19, 'x'), std::string(19, 'x'), std::string(7, 'x')}));
}

TEST(WordWrap, KeepsLineEndsAndIndentation) {
  EXPECT_EQ(lines_shown({"a\n  b\n\nc"}, 20), (Lines{"a", "  b", "", "c"}));
}

TEST(WordWrap, ASpaceAtTheEdgeEndsTheLine) {
  EXPECT_EQ(lines_shown({"1234567890123456789 next"}, 20), (Lines{"1234567890123456789", "next"}));
}

TEST(WordWrap, WideCharactersTakeTwoColumnsAndMayBeParted) {
  WordWrap wrap(20);
  const std::string ten = "\u4f60\u597d\u4f60\u597d\u4f60\u597d\u4f60\u597d\u4f60\u597d";
  EXPECT_EQ(wrap.wrap(ten), ten.substr(0, 27) + "\n" + ten.substr(27));
}

TEST(WordWrap, ANarrowTerminalIsLeftAlone) {
  WordWrap wrap(10);
  EXPECT_EQ(wrap.wrap("a text that is longer than ten"), "a text that is longer than ten");
}

}  // namespace
}  // namespace still
