// A command in C++: it shows the lines of files in order, and ends with their number.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

int main(int argc, char **argv) {
  std::vector<std::string> lines;
  for (int i = 1; i < argc; i++) {
    // Zig's C++ library has no file streams for WASI.
    std::FILE *file = std::fopen(argv[i], "r");
    if (!file) {
      std::cerr << argv[i] << " cannot be opened\n";
      return 1;
    }
    char line[1024];
    while (std::fgets(line, sizeof line, file)) lines.emplace_back(line);
    std::fclose(file);
  }
  std::sort(lines.begin(), lines.end());
  for (const auto &line : lines) std::cout << line;
  return static_cast<int>(lines.size());
}
