// Shows in the terminal how a picture comes about, scale by scale, and saves it:
//
//     preview [--no-preview] MODEL PROMPT [OUT.png [SEED]]
//
// Ctrl-C stops the run. The terminal must know 24-bit colours, as nearly all do.
#include <charconv>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <hart.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <vector>

namespace {

constexpr const char *usage = "usage: preview [--no-preview] MODEL PROMPT [OUT.png [SEED]]\n"
                              "\n"
                              "  --no-preview  only the progress, no picture\n"
                              "  OUT.png       the file to write; default preview.png\n"
                              "  SEED          another seed, another picture; default 0\n";

/// Sides of the picture in the terminal: so many columns, and half as many lines.
constexpr std::uint32_t preview_side = 40;

struct Arguments {
    std::string model, prompt, out = "preview.png";
    std::uint64_t seed = 0;
    bool preview = true, help = false;
};

std::optional<Arguments> parse(int argc, char **argv) {
    Arguments arguments;
    std::vector<std::string> places;
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
            places.push_back(argument);
        }
    }
    if (places.size() < 2 || places.size() > 4) return std::nullopt;
    arguments.model = places[0];
    arguments.prompt = places[1];
    if (places.size() > 2) arguments.out = places[2];
    if (places.size() > 3) {
        const char *begin = places[3].data(), *end = begin + places[3].size();
        const auto [rest, error] = std::from_chars(begin, end, arguments.seed);
        if (error != std::errc() || rest != end) return std::nullopt;
    }
    return arguments;
}

/// Draws over what it has drawn before.
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
    std::string up_; // Moves the cursor to the first line of the picture before.
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
        std::fputs(usage, arguments ? stdout : stderr);
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
