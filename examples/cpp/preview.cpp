// Shows the image in the terminal after every scale, and saves it:
//
//     preview [--no-preview] MODEL PROMPT [OUT.png [SEED]]
//
// Ctrl-C cancels the run. The terminal must support 24-bit colours.
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <hart.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

#ifdef _WIN32
#include <windows.h>
#endif

namespace {

constexpr const char *usage = "usage: preview [--no-preview] MODEL PROMPT [OUT.png [SEED]]\n"
                              "\n"
                              "  --no-preview  show the progress only\n"
                              "  OUT.png       the file to write (default: preview.png)\n"
                              "  SEED          the seed of the image (default: 0)\n";

/// Side of the image in the terminal: this many columns, and half as many lines.
constexpr std::uint32_t preview_side = 40;

struct Arguments {
    std::string model, prompt, out = "preview.png";
    std::uint64_t seed = 0;
    bool preview = true, help = false;
};

std::optional<Arguments> parse(int argc, char **argv) {
    Arguments arguments;
    std::vector<std::string> positional;
    for (int i = 1; i < argc; ++i) {
        const std::string argument = argv[i];
        if (argument == "--no-preview") {
            arguments.preview = false;
        } else if (argument == "--help" || argument == "-h") {
            arguments.help = true;
            return arguments;
        } else if (argument.size() > 1 && argument[0] == '-') {
            return std::nullopt;
        } else {
            positional.push_back(argument);
        }
    }
    if (positional.size() < 2 || positional.size() > 4) return std::nullopt;
    arguments.model = positional[0];
    arguments.prompt = positional[1];
    if (positional.size() > 2) arguments.out = positional[2];
    if (positional.size() > 3) {
        const char *begin = positional[3].data(), *end = begin + positional[3].size();
        const auto [rest, error] = std::from_chars(begin, end, arguments.seed);
        if (error != std::errc() || rest != end) return std::nullopt;
    }
    return arguments;
}

/// The image and the progress in the terminal. Each event overwrites the one before.
class Screen {
public:
    explicit Screen(bool preview) : preview_(preview) {}

    void show(const hart::Event &event) {
        std::string text = "\r";
        if (preview_ && event.has_preview()) {
            const hart::Image image = event.preview(preview_side);
            text += up_;
            append(text, image);
            up_ = "\x1b[" + std::to_string((image.height() + 1) / 2) + "A";
        }
        char scale[32] = "", line[96];
        if (event.scales() > 0) {
            std::snprintf(scale, sizeof scale, "scale %u of %u", static_cast<unsigned>(event.scale()), static_cast<unsigned>(event.scales()));
        }
        std::snprintf(line, sizeof line, "%3.0f %%  %-11s  %-14s  %6.1f s", 100.0 * event.fraction(), hart::text(event.stage()), scale,
                      event.elapsed());
        text += line;
        std::fputs(text.c_str(), stderr);
    }

private:
    /// Appends an image. An upper half block shows two pixels: the foreground colour above the background colour.
    static void append(std::string &text, const hart::Image &image) {
        const auto pixels = image.pixels();
        const auto colour = [&](const char *escape, std::size_t x, std::size_t y) {
            const std::size_t offset = y * image.stride() + 3 * x;
            text += escape;
            for (std::size_t channel = 0; channel < 3; ++channel) text += ';' + std::to_string(pixels[offset + channel]);
            text += 'm';
        };
        for (std::size_t y = 0; y < image.height(); y += 2) {
            for (std::size_t x = 0; x < image.width(); ++x) {
                colour("\x1b[38;2", x, y);
                if (y + 1 < image.height()) colour("\x1b[48;2", x, y + 1);
                text += "\xe2\x96\x80"; // U+2580
            }
            text += "\x1b[0m\x1b[K\n";
        }
    }

    bool preview_;
    std::string up_; // Moves the cursor to the first line of the previous image.
};

/// Makes the console of Windows show UTF-8 and obey escape codes, as other terminals do.
void prepare_console() {
#ifdef _WIN32
    SetConsoleOutputCP(CP_UTF8);
    const HANDLE console = GetStdHandle(STD_ERROR_HANDLE);
    DWORD mode = 0;
    if (GetConsoleMode(console, &mode)) SetConsoleMode(console, mode | ENABLE_VIRTUAL_TERMINAL_PROCESSING);
#endif
}

/// The token that Ctrl-C cancels. Set before the signal handler is installed.
const hart::Cancel *interrupt_token = nullptr;

void on_interrupt(int signal) {
    std::signal(signal, SIG_DFL); // A second Ctrl-C ends the program at once.
    interrupt_token->request();
}

} // namespace

int main(int argc, char **argv) {
    const auto arguments = parse(argc, argv);
    if (!arguments || arguments->help) {
        std::fputs(usage, arguments ? stdout : stderr);
        return arguments ? 0 : 2;
    }
    prepare_console();
    try {
        const auto model = hart::Model::open(arguments->model);

        // The handler is installed after the model is open. Until then, Ctrl-C ends the program.
        const hart::Cancel cancel;
        interrupt_token = &cancel;
        std::signal(SIGINT, on_interrupt);

        Screen screen(arguments->preview);
        const auto request = hart::Request(arguments->prompt)
                                 .seed(arguments->seed)
                                 .cancel_token(cancel)
                                 .observer([&](const hart::Event &event) { screen.show(event); });
        const auto result = model.generate(request);
        std::signal(SIGINT, SIG_DFL);

        for (const auto &truncation : result.truncations()) {
            std::fprintf(stderr, "\nthe model reads at most %u tokens; not read: %s", static_cast<unsigned>(truncation.kept),
                         truncation.cut.c_str());
        }
        result.image(0).save(arguments->out);
        std::fprintf(stderr, "\n%s\n", arguments->out.c_str());
        return 0;
    } catch (const hart::Cancelled &cancelled) {
        std::fprintf(stderr, "\n%s\n", cancelled.what());
        return 130; // 128 + SIGINT, the exit status that shells use.
    } catch (const hart::Error &error) {
        std::fprintf(stderr, "\n%s\n", error.what());
        return 1;
    }
}
