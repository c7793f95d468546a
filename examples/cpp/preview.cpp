// Shows in the terminal how a picture comes about, scale by scale, and saves it:
//
//     preview [--no-preview] [--seed N] [--out FILE] MODEL PROMPT
//
// Ctrl-C stops the run. The terminal must know 24-bit colours, as nearly all do.
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <hart.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

namespace {

constexpr std::string_view usage = "usage: preview [--no-preview] [--seed N] [--out FILE] MODEL PROMPT\n"
                                   "\n"
                                   "  --no-preview  only the progress, no picture\n"
                                   "  --seed N      another seed, another picture; default 0\n"
                                   "  --out FILE    the PNG file; default preview.png\n";

/// Sides of the picture in the terminal: so many columns, and half as many lines.
constexpr std::uint32_t preview_side = 40;

struct Arguments {
    std::string model, prompt, out = "preview.png";
    std::uint64_t seed = 0;
    bool preview = true, help = false;
};

std::optional<Arguments> parse(int argc, char **argv) {
    Arguments arguments;
    int places = 0;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        const bool has_value = i + 1 < argc;
        if (argument == "--help" || argument == "-h") {
            arguments.help = true;
            return arguments;
        } else if (argument == "--no-preview") {
            arguments.preview = false;
        } else if (argument == "--seed" && has_value) {
            const std::string_view value = argv[++i];
            const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), arguments.seed);
            if (error != std::errc() || end != value.data() + value.size()) return std::nullopt;
        } else if (argument == "--out" && has_value) {
            arguments.out = argv[++i];
        } else if (argument.substr(0, 1) == "-" || places == 2) {
            return std::nullopt;
        } else {
            (places++ == 0 ? arguments.model : arguments.prompt) = argument;
        }
    }
    return places == 2 ? std::optional(arguments) : std::nullopt;
}

/// Draws over what it has drawn before.
class Screen {
public:
    explicit Screen(bool preview) : preview_(preview) {}

    void show(const hart::Event &event) {
        std::string text = up_;
        if (preview_ && event.has_preview()) {
            const hart::Image image = event.preview(preview_side);
            append(text, image);
            up_ = "\x1b[" + std::to_string((image.height() + 1) / 2) + "A\r";
        } else if (!up_.empty()) {
            text = "\r";
        }
        char line[64];
        std::snprintf(line, sizeof line, "\r%3.0f %%  %-11s  scale %2u of %2u  %6.1f s", 100.0 * event.fraction(),
                      hart::text(event.stage()), static_cast<unsigned>(event.scale()), static_cast<unsigned>(event.scales()),
                      event.elapsed());
        std::fputs((text + line).c_str(), stderr);
    }

private:
    /// An upper half block shows two pixels, one above the other: its own colour and that behind it.
    static void append(std::string &text, const hart::Image &image) {
        const auto pixels = image.pixels();
        const auto colour = [&](const char *where, std::size_t x, std::size_t y) {
            const std::size_t at = y * image.stride() + 3 * x;
            text += where;
            for (std::size_t channel = 0; channel < 3; ++channel) text += ';' + std::to_string(pixels[at + channel]);
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
    std::string up_; // Moves the cursor back to the picture's first line.
};

/// What Ctrl-C stops. Set before the handler is.
const hart::Cancel *interrupted = nullptr;

void on_interrupt(int signal) {
    std::signal(signal, SIG_DFL); // A second Ctrl-C ends the program at once.
    interrupted->request();
}

} // namespace

int main(int argc, char **argv) {
    const auto arguments = parse(argc, argv);
    if (!arguments || arguments->help) {
        std::fputs(usage.data(), arguments ? stdout : stderr);
        return arguments ? 0 : 2;
    }
    try {
        const auto model = hart::Model::open(arguments->model);

        // From here on; while the model is opened, Ctrl-C ends the program as it always does.
        const hart::Cancel cancel;
        interrupted = &cancel;
        std::signal(SIGINT, on_interrupt);

        Screen screen(arguments->preview);
        const auto request = hart::Request(arguments->prompt)
                                 .seed(arguments->seed)
                                 .cancel_token(cancel)
                                 .observer([&](const hart::Event &event) { screen.show(event); });
        const auto result = model.generate(request);
        std::signal(SIGINT, SIG_DFL);

        for (const auto &truncation : result.truncations()) {
            std::fprintf(stderr, "\nthe model reads no more than %u tokens; not read: %s", static_cast<unsigned>(truncation.kept),
                         truncation.cut.c_str());
        }
        result.image(0).save(arguments->out);
        std::fprintf(stderr, "\n%s\n", arguments->out.c_str());
        return 0;
    } catch (const hart::Cancelled &cancelled) {
        std::fprintf(stderr, "\n%s\n", cancelled.what());
        return 130; // 128 and SIGINT's number, as a shell expects.
    } catch (const hart::Error &error) {
        std::fprintf(stderr, "\n%s\n", error.what());
        return 1;
    }
}
