// Generates an image from a prompt: minimal MODEL PROMPT OUT.png
#include <hart.hpp>
#include <iostream>

int main(int argc, char **argv) try {
    if (argc != 4) {
        std::cerr << "usage: " << argv[0] << " MODEL PROMPT OUT.png\n";
        return 2;
    }
    hart::Model::open(argv[1]).generate(hart::Request(argv[2])).image(0).save(argv[3]);
    return 0;
} catch (const hart::Error &error) {
    std::cerr << error.what() << '\n';
    return 1;
}
