/* Correct and incorrect uses of everything in hart.hpp: wrapper MODEL SCRATCH [brief]. It runs under the sanitizers and
 * under valgrind. Under valgrind an image takes hundreds of times as long, so pass a tiny model and `brief`. */
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <hart.hpp>
#include <iterator>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

namespace fs = std::filesystem;

/* Exits with a message if a condition is false. */
#define CHECK(condition)                                                                                                      \
    do {                                                                                                                 \
        if (!(condition)) {                                                                                                   \
            std::fprintf(stderr, "%s:%d: failed: %s\nlast error: %s\n", __FILE__, __LINE__, #condition, hart_last_error()); \
            std::exit(1);                                                                                                \
        }                                                                                                                \
    } while (0)

/* Checks that an expression throws a hart::Error with a status, and that its message contains `part`. */
#define THROWS(expression, wanted, part)                                                        \
    do {                                                                                        \
        const auto error = thrown([&] { static_cast<void>(expression); });                      \
        CHECK(error.has_value());                                                               \
        CHECK(error->status() == hart::Status::wanted);                                         \
        CHECK(std::string_view(error->what()).find(part) != std::string_view::npos);            \
    } while (0)

namespace {

template <class F>
std::optional<hart::Error> thrown(F function) {
    try {
        function();
    } catch (const hart::Error &error) {
        return error;
    }
    return std::nullopt;
}

/* An exception that is not an Error of hart. */
struct Oops {
    std::unique_ptr<int> moved_only;
    int number;
    Oops(int n) : moved_only(std::make_unique<int>(n)), number(n) {}
    Oops(const Oops &other) : Oops(other.number) {}
    Oops &operator=(const Oops &) = delete;
};

template <class T>
bool same(hart::span<T> a, hart::span<T> b) {
    return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

bool same(const hart::Image &a, const hart::Image &b) {
    return a.width() == b.width() && a.height() == b.height() && same(a.pixels(), b.pixels());
}

hart::Image generate(const hart::Model &model, const char *prompt, std::uint64_t seed) {
    return model.generate(hart::Request(prompt).seed(seed)).image(0);
}

template <class T>
constexpr bool is_owner = std::is_nothrow_move_constructible_v<T> && std::is_nothrow_move_assignable_v<T>
                          && std::is_nothrow_destructible_v<T> && !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;

static_assert(is_owner<hart::Model> && is_owner<hart::Options> && is_owner<hart::Files> && is_owner<hart::Request>);
static_assert(is_owner<hart::Result> && is_owner<hart::Image> && is_owner<hart::Tokens> && is_owner<hart::Cancel>);
static_assert(is_owner<hart::Context>);
static_assert(!std::is_copy_constructible_v<hart::Event> && !std::is_move_constructible_v<hart::Event>);
static_assert(std::is_nothrow_copy_constructible_v<hart::Error> && std::is_nothrow_copy_constructible_v<hart::Cancelled>);
static_assert(std::is_base_of_v<std::runtime_error, hart::Error> && std::is_base_of_v<hart::Error, hart::Cancelled>);
static_assert(!std::is_convertible_v<const char *, hart::Request>);
#if defined(__cpp_lib_span)
static_assert(std::is_same_v<decltype(std::declval<const hart::Image &>().pixels()), std::span<const std::uint8_t>>);
#endif

/* A view of a temporary does not compile. */
template <class T, class = void>
constexpr bool gives_pixels = false;
template <class T>
constexpr bool gives_pixels<T, std::void_t<decltype(std::declval<T>().pixels())>> = true;
static_assert(gives_pixels<hart::Image &> && gives_pixels<const hart::Image &> && !gives_pixels<hart::Image>);

void library() {
    const std::string version = std::to_string(HART_VERSION_MAJOR) + "." + std::to_string(HART_VERSION_MINOR) + "."
                                + std::to_string(HART_VERSION_PATCH);
    CHECK(hart::version() == version);
    CHECK(hart::build_info().find("\"version\":\"" + version + "\"") != std::string_view::npos);
    const auto devices = hart::devices();
    CHECK(!devices.empty());
    for (const auto &device : devices) CHECK(!device.name.empty() && !device.description.empty());
    CHECK(std::any_of(devices.begin(), devices.end(), [](const hart::Device &device) { return device.name == "cpu"; }));
    CHECK(hart::text(hart::Status::ok) == std::string_view("done"));
    CHECK(hart::text(static_cast<hart::Status>(-7)) == std::string_view("an unknown status"));
    CHECK(hart::text(hart::Stage::residual) == std::string_view("residual"));
    CHECK(hart::text(static_cast<hart::Stage>(77)) == std::string_view("other"));
}

void span_of_values() {
    std::vector<int> values{1, 2, 3};
    const hart::span<const int> view(values), none;
    CHECK(view.size() == 3 && view.data() == values.data() && view[2] == 3 && !view.empty());
    CHECK(none.size() == 0 && none.begin() == none.end() && none.empty());
    int sum = 0;
    for (const int value : view) sum += value;
    CHECK(sum == 6);
    const hart::span<int> changeable(values.data(), values.size());
    changeable[0] = 7;
    CHECK(same(hart::span<const int>(changeable), view) && values[0] == 7);
}

void strings() {
    CHECK(hart::Text("a").c_str() == std::string_view("a"));
    CHECK(hart::Text(std::string("b")).c_str() == std::string_view("b"));
    CHECK(hart::Text(std::string_view("cd").substr(1)).c_str() == std::string_view("d"));
    // char8_t from C++20 on.
    CHECK(hart::Text(u8"\u00e9").c_str() == std::string_view("\xc3\xa9"));
    CHECK(hart::Path(fs::path("x") / "y").c_str() == (fs::path("x") / "y").string());
    CHECK(hart::Path("x/y").c_str() == std::string_view("x/y"));
    CHECK(hart::Path(u8"\u00e9").c_str() == std::string_view("\xc3\xa9"));
    THROWS(hart::Text(std::string("a\0b", 3)), argument, "byte 1");
    const char *nothing = nullptr;
    THROWS(hart::Text(nothing), null, "NULL");
    THROWS(hart::Request("\xff"), utf8, "`prompt`");
}

void models(const hart::Model &model) {
    const auto info = model.info();
    CHECK(info.width > 0 && info.height == info.width && info.scales > 1 && info.context_tokens > 1 && info.codes > 1);
    CHECK(info.parameters > 10000 && info.device == "cpu" && info.precision == "f32");
    const auto image = model.generate(hart::Request("x")).image(0);
    CHECK(info.fingerprint.size() == 64 && image.model_fingerprint() == info.fingerprint);
    const auto one = model.memory(), four = model.memory(hart::Request("a parrot").images_per_prompt(4));
    CHECK(one.weights > 0 && one.peak > one.weights && four.weights >= one.weights && four.peak >= one.peak);
    CHECK(model.parallel() > 1 || four.weights == one.weights);
}

void options(const std::string &path) {
    hart::Options options;
    CHECK(&options.device("cpu") == &options);
    options.precision("f32").weights("auto").memory_map(false).strict(true).threads(1).max_memory(0).keep_text_model(true).text_model(fs::path(path) / "text");
    const auto model = hart::Model::open(path, options);
    const auto other = hart::Model::open(fs::path(path), hart::Options().threads(2).parallel(2).device("auto"));
    CHECK(model.parallel() == 1 && other.parallel() == 2);
    std::vector<std::uint32_t> indices;
    hart::Request both("a house");
    both.seed(3).images_per_prompt(2).observer([&](const hart::Event &event) { indices.push_back(event.image_index()); });
    const auto pair = other.generate(both);
    CHECK(pair.count() == 2 && same(pair.image(0), generate(model, "a house", 3)) && same(pair.image(1), generate(model, "a house", 4)));
    CHECK(std::count(indices.begin(), indices.end(), 0u) > 1 && std::count(indices.begin(), indices.end(), 1u) > 1);
    THROWS(hart::Model::open(path, hart::Options().threads(1).parallel(2)), request, "expected 1 to 1");
    CHECK(same(generate(model, "a house", 3), generate(other, "a house", 3)));
    CHECK(same(generate(model.share(), "a house", 3), generate(other, "a house", 3)));

    THROWS(options.weights("best"), argument, "best");
    THROWS(options.device("abacus"), device, "abacus");
    THROWS(options.precision("f33"), argument, "f33");
    THROWS(options.threads(5000), argument, "5000");
    THROWS(hart::Model::open(path, hart::Options().max_memory(1000)), memory, "memory");
    THROWS(hart::Model::open(path + "-that-is-not-there"), checkpoint, "that-is-not-there");
    THROWS(hart::Model::open(path, hart::Options().text_model(fs::path("no") / "where")), checkpoint, "where");
}

void requests(const hart::Model &model) {
    hart::Request request;
    THROWS(model.generate(request), request, "prompt");
    CHECK(&request.prompt("a house") == &request);
    request.prompt("a parrot").add_prompt("a guitar").images_per_prompt(2).seed(5);
    request.guidance(1.5).smoothing(false).top_k(100).top_p(0.5).steps("4").system_prompt("");
    const auto result = model.generate(request);
    const auto images = result.images();
    const std::size_t side = model.info().width;
    CHECK(result.count() == 4 && images.size() == 4);
    const std::array<const char *, 4> prompts{"a parrot", "a parrot", "a guitar", "a guitar"};
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(images[i].prompt() == prompts[i] && images[i].seed() == 5 + i % 2 && images[i].settings()->find("1.5") != std::string::npos);
        CHECK(images[i].width() == side && images[i].height() == side && images[i].stride() == 3 * side);
        CHECK(images[i].pixels().size() == 3 * side * side);
        CHECK(same(images[i], result.image(i)));
    }
    CHECK(!same(images[0], images[1]));
    const auto t = result.timings();
    CHECK(t.text > 0 && t.transformer > 0 && t.sampling > 0 && t.residual > 0 && t.decode > 0 && t.total > t.transformer);
    CHECK(result.truncations().empty());
    THROWS(result.image(4), argument, "4");

    // The same request again, and an equal one.
    CHECK(same(model.generate(request).image(3), images[3]));
    auto twin = hart::Request("a guitar").seed(6).guidance(1.5).smoothing(false).top_k(100).top_p(0.5).steps("4").system_prompt("");
    CHECK(same(model.generate(twin).image(0), images[3]));
    CHECK(same(model.generate(std::move(twin).default_system_prompt()).image(0), images[3])); // This model has no system prompt.

    THROWS(request.guidance(std::numeric_limits<double>::quiet_NaN()), request, "guidance");
    THROWS(request.top_p(2.0), request, "top");
    THROWS(request.top_k(0), request, "top");
    THROWS(request.steps("many"), request, "many");
    THROWS(request.prune("half"), request, "half");
    THROWS(model.generate(hart::Request("a house").prune("0,0,0,0,0,0,0,0,0,0,0,0")), request, "12 ratios");
    const auto pruned = model.generate(hart::Request("a house").prune("0.5")).image(0);
    CHECK(pruned.settings()->find("prune 0.5") != std::string::npos);
    CHECK(!same(model.generate(hart::Request("a house").prune("0.25").without_pruning()).image(0), pruned));
    THROWS(request.marks("promt"), request, "expected all, none, or names");
    const auto again = model.generate(hart::Request::again(pruned).marks("none")).image(0);
    CHECK(same(again, pruned) && again.settings() == pruned.settings());
    CHECK(hart::Request("a house").marks("prompt").marks() == "prompt" && !hart::Request("a house").marks());
    THROWS((void)hart::Request::again(hart::Image::decode(again.png())), request, "has no settings of hart");
    THROWS(request.images_per_prompt(0), request, "images");
    CHECK(same(model.generate(request).image(3), images[3])); // Invalid settings change nothing.

    std::string longer = "a house";
    for (int i = 0; i < 40; ++i) longer += " and a house";
    const auto cut = model.generate(hart::Request("a parrot").add_prompt(longer)).truncations();
    CHECK(cut.size() == 1 && cut[0].prompt == std::size_t{1} && cut[0].tokens > cut[0].kept && cut[0].kept > 0 && !cut[0].cut.empty());
    const auto system = model.generate(hart::Request("a parrot").system_prompt(longer)).truncations();
    CHECK(std::any_of(system.begin(), system.end(), [](const hart::Truncation &t2) { return !t2.prompt; }));
}

void images(const hart::Model &model, const fs::path &scratch) {
    std::optional<hart::Image> kept;
    hart::span<const std::uint8_t> pixels;
    std::vector<std::uint8_t> before;
    {
        const auto own = model.share();
        const auto result = own.generate(hart::Request("a red heart").seed(9));
        kept = result.image(0);
        pixels = kept->pixels();
        before.assign(pixels.begin(), pixels.end());
    }
    // The image outlives the result and the handle of the model, and moving it does not move its pixels.
    const hart::Image image = *std::move(kept);
    CHECK(image.pixels().data() == pixels.data() && same(pixels, hart::span<const std::uint8_t>(before)));

    const std::array<std::uint8_t, 8> signature{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    const auto png = image.png();
    CHECK(png.size() > 8 && std::equal(signature.begin(), signature.end(), png.begin()));
    CHECK(image.png().data() == png.data());

    // A file name that is not ASCII.
    const auto path = scratch / fs::path(u8"h\u00e9art \u5fc3.png");
    image.save(path);
    std::ifstream file(path, std::ios::binary);
    const std::vector<char> saved((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    CHECK(saved.size() == png.size() && std::equal(png.begin(), png.end(), saved.begin(), [](std::uint8_t a, char b) {
        return a == static_cast<std::uint8_t>(b);
    }));
    CHECK(same(hart::Image::open(path.u8string()), image));
    const auto opened = hart::Image::open(path), remade = hart::Image::decode(image.png());
    for (const auto *again : {&opened, &remade}) {
        CHECK(same(*again, image) && again->prompt() == image.prompt() && again->seed() == image.seed());
        CHECK(again->settings() == image.settings());
    }
    THROWS(hart::Image::decode({signature.data(), signature.size()}), image, "memory");
    for (const auto &[name, format] : {std::pair{"a.PNG", hart::Format::png}, {"a.jpg", hart::Format::jpeg}, {"a.webp", hart::Format::webp}}) {
        image.save(scratch / name);
        const auto bytes = image.encode(format);
        const auto read = hart::Image::open(scratch / name), decoded = hart::Image::decode(bytes);
        CHECK(bytes.size() == fs::file_size(scratch / name) && bytes.data() == image.encode(format).data());
        CHECK(same(read, decoded) && read.prompt() == image.prompt() && read.seed() == image.seed());
        CHECK(format == hart::Format::jpeg || same(read, image));
    }
    CHECK(image.encode(hart::Format::jpeg, 30).size() < image.encode(hart::Format::jpeg).size());
    THROWS(static_cast<void>(image.encode(hart::Format::jpeg, 101)), argument, "quality");
    THROWS(image.save(scratch / "a.bmp"), request, "a.bmp ends in .bmp");
    THROWS(image.save(scratch / "no" / "folder.png"), io, "folder.png");
    THROWS(hart::Image::open(scratch / "nothing.png"), io, "nothing.png");
    std::ofstream(scratch / "text.png") << "not an image";
    THROWS(hart::Image::open(scratch / "text.png"), image, "text.png");

    // Two rows of one pixel with a stride of four bytes.
    const std::vector<std::uint8_t> rows{1, 2, 3, 99, 4, 5, 6};
    const auto small = hart::Image::from_pixels(1, 2, rows, 4);
    CHECK(small.width() == 1 && small.height() == 2 && small.stride() == 3);
    CHECK(same(small.pixels(), hart::span<const std::uint8_t>(std::vector<std::uint8_t>{1, 2, 3, 4, 5, 6})));
    CHECK(!small.prompt() && !small.settings() && !small.seed());
    const auto wide = hart::Image::from_pixels(2, 1, {rows.data(), 6});
    CHECK(wide.pixels()[3] == 99 && wide.pixels()[5] == 5);
    THROWS(hart::Image::from_pixels(1, 2, rows, 5), argument, "7 bytes");
    THROWS(hart::Image::from_pixels(3, 1, rows), argument, "7 bytes");
    THROWS(hart::Image::from_pixels(1, 2, rows, std::numeric_limits<std::size_t>::max()), argument, "7 bytes");
    THROWS(hart::Image::from_pixels(0xffffffff, 0xffffffff, rows), argument, "7 bytes");
    THROWS(hart::Image::from_pixels(0, 1, rows), argument, "0 x 1");
    THROWS(hart::Image::from_pixels(1, 0, rows), argument, "1 x 0");
    THROWS(hart::Image::from_pixels(2, 1, rows, 1), argument, "stride");
    // Without padding the size must match exactly.
    THROWS(hart::Image::from_pixels(2, 1, rows), argument, "7 bytes for 2 x 1 with a stride of 0 bytes and 3 bytes a pixel: expected 6");
    CHECK(hart::Image::from_pixels(2, 1, rows, 6).width() == 2);

    std::vector<hart::Image> tiles;
    for (const std::uint8_t level : std::array<std::uint8_t, 3>{10, 20, 30}) {
        const std::vector<std::uint8_t> grey(2 * 1 * 3, level);
        tiles.push_back(hart::Image::from_pixels(2, 1, grey));
    }
    const auto grid = hart::Image::grid(tiles, 2);
    CHECK(grid.width() == 4 && grid.height() == 2);
    CHECK(grid.pixels()[0] == 10 && grid.pixels()[6] == 20 && grid.pixels()[12] == 30);
    THROWS(hart::Image::grid(tiles, 0), request, "column");
    THROWS(hart::Image::grid({}, 1), request, "");
    tiles.push_back(hart::Image::from_pixels(1, 2, rows, 4));
    THROWS(hart::Image::grid(tiles, 2), request, "");
}

void moves(const hart::Model &model, const std::string &path) {
    // Objects that are moved, assigned to themselves, and used when empty.
    auto other = model.share();
    hart::Model moved(std::move(other));
    THROWS(other.info(), null, "model");              // NOLINT: the use after the move is the test.
    THROWS(other.generate(hart::Request("a")), null, "model");
    THROWS(moved.generate(std::move(*std::make_unique<hart::Request>("\x01"))).image(7), argument, "7");
    other = std::move(moved);
    CHECK(other.info().width == model.info().width);
    auto &itself = other;
    other = std::move(itself);
    CHECK(other.info().width == model.info().width);
    other = hart::Model::open(path);

    hart::Request request("a house");
    hart::Request next = std::move(request);
    THROWS(request.seed(1), null, "request");
    THROWS(request.observer([](const hart::Event &) {}), null, "request");
    THROWS(other.generate(request), null, "request");
    THROWS(other.memory(request), null, "request");
    request = std::move(next);
    auto result = other.generate(request);
    auto second = std::move(result);
    CHECK(result.count() == 0 && result.images().empty() && result.truncations().empty());
    THROWS(result.image(0), null, "result");
    THROWS(result.timings(), null, "result");
    result = std::move(second);

    auto image = result.image(0);
    auto taken = std::move(image);
    CHECK(image.width() == 0 && image.height() == 0 && image.stride() == 0 && image.pixels().size() == 0 && !image.prompt());
    CHECK(!image.settings() && !image.seed());
    THROWS(image.png(), null, "image");
    THROWS(image.save("nowhere.png"), null, "image");
    THROWS(other.tokenize(image), null, "image");
    std::vector<hart::Image> pair;
    pair.push_back(result.image(0));
    pair.push_back(std::move(image));
    THROWS(hart::Image::grid(pair, 2), null, "images");
    image = std::move(taken);
    CHECK(image.width() > 0 && image.pixels().size() == image.stride() * image.height() && taken.width() == 0);
    auto &image_itself = image;
    image = std::move(image_itself);
    CHECK(image.width() > 0 && image.pixels().size() == image.stride() * image.height() && image.prompt() == "a house");

    auto tokens = other.tokenize(image);
    auto tokens_taken = std::move(tokens);
    CHECK(tokens.scales() == 0);
    THROWS(tokens.codes(0), null, "tokens");
    THROWS(other.reconstruct(tokens), null, "tokens");
    tokens = std::move(tokens_taken);

    auto context = other.encode(request);
    auto context_taken = std::move(context);
    CHECK(context.count() == 0 && context.bytes() == 0);
    THROWS(context.hidden(0), null, "context");
    THROWS(context.mask(0), null, "context");
    THROWS(request.context(context), null, "context");
    context = std::move(context_taken);
    CHECK(context.count() == 1);

    hart::Options options;
    auto options_taken = std::move(options);
    THROWS(options.threads(1), null, "options");
    THROWS(hart::Model::open(path, options), null, "options");
    options = std::move(options_taken);

    hart::Files files;
    auto files_taken = std::move(files);
    THROWS(files.add("a", "b", 1), null, "files");
    THROWS(hart::Model::from_files(files), null, "files");
    files = std::move(files_taken);

    hart::Cancel cancel;
    auto cancel_taken = std::move(cancel);
    cancel.request();
    CHECK(!cancel.is_requested());
    THROWS(cancel.reset(), null, "cancel");
    THROWS(request.cancel_token(cancel), null, "cancel");
    cancel = std::move(cancel_taken);
    cancel.request();
    CHECK(cancel.is_requested());
}

/* The events that an observer receives. Previews and observers do not change the image. */
void events(const hart::Model &model) {
    const auto plain = generate(model, "a penguin", 11);
    const auto info = model.info();
    std::map<hart::Step, int> steps;
    std::map<hart::Stage, int> stages;
    std::vector<hart::Image> previews;
    float fraction = 0;
    double elapsed = 0;
    const auto thread = std::this_thread::get_id();
    hart::Request request("a penguin");
    request.seed(11).observer([&](const hart::Event &event) {
        ++steps[event.step()];
        ++stages[event.stage()];
        CHECK(std::this_thread::get_id() == thread);
        CHECK(event.index() >= 1 && event.index() <= event.count());
        CHECK(event.fraction() >= fraction && event.fraction() <= 1 && event.elapsed() >= elapsed);
        fraction = event.fraction();
        elapsed = event.elapsed();
        if (event.step() == hart::Step::text_layer) {
            CHECK(event.stage() == hart::Stage::text && event.scale() == 0 && event.scales() == 0 && event.side() == 0);
        } else {
            CHECK(event.scale() >= 1 && event.scale() <= event.scales() && event.scales() == info.scales && event.side() >= 1);
        }
        if (event.has_preview()) {
            previews.push_back(event.preview(4));
            CHECK(previews.back().width() <= 8 && previews.back().height() >= 1);
            previews.push_back(event.preview());
            CHECK(previews.back().width() == info.width);
        } else {
            THROWS(event.preview(4), state, "preview");
        }
        return hart::Control::go_on;
    });
    // Moving the request keeps its observer.
    hart::Request moved = std::move(request);
    auto last = hart::Request("a parrot");
    last = std::move(moved);
    const auto watched = model.generate(last).image(0);
    CHECK(same(watched, plain) && fraction == 1);
    CHECK(steps[hart::Step::scale] == static_cast<int>(info.scales) && steps[hart::Step::scale_done] == static_cast<int>(info.scales));
    CHECK(steps[hart::Step::text_layer] > 0 && steps[hart::Step::block] > 0 && steps[hart::Step::diffusion] > 0);
    CHECK(steps[hart::Step::decoder] > 0 && steps[hart::Step::images] == 1 && steps[hart::Step::other] == 0);
    CHECK(stages.size() >= 4);
    // The last preview is the final image, and previews outlive the run.
    CHECK(same(previews.back(), plain) && previews.size() == 2 * (info.scales + 1));

    // Every kind of observer: a std::function, a function pointer, a mutable lambda, and none.
    int events = 0;
    const hart::Observer function = [&](const hart::Event &) {
        ++events;
        return hart::Control::go_on;
    };
    static_cast<void>(model.generate(last.observer(function)));
    CHECK(events > 0);
    last.observer(+[](const hart::Event &) { return hart::Control::cancel; });
    THROWS(model.generate(last), cancelled, "0 of 1");
    last.observer([count = 0](const hart::Event &) mutable { return ++count < 3 ? hart::Control::go_on : hart::Control::cancel; });
    THROWS(model.generate(last), cancelled, "cancelled");
    events = 0;
    static_cast<void>(model.generate(last.without_observer()));
    static_cast<void>(model.generate(last.observer(hart::Observer())));
    CHECK(events == 0);
    CHECK(same(model.generate(std::move(last).observer(function).without_observer()).image(0), plain) && events == 0);
}

/* generate() rethrows the exception of an observer, and the request and the model can be used again. */
void observers_that_throw(const hart::Model &model) {
    const auto plain = generate(model, "a house", 2);
    auto request = hart::Request("a house").seed(2);
    int calls = 0;
    request.observer([&](const hart::Event &event) {
        ++calls;
        if (event.step() == hart::Step::scale) throw Oops(42);
    });
    for (int i = 0; i < 2; ++i) {
        bool caught = false;
        const int before = calls;
        try {
            static_cast<void>(model.generate(request));
        } catch (const Oops &oops) {
            caught = oops.number == 42 && *oops.moved_only == 42;
        }
        CHECK(caught && calls > before);
    }
    CHECK(same(model.generate(request.without_observer()).image(0), plain));

    // At the last event too, when the image is finished.
    request.observer([](const hart::Event &event) {
        if (event.step() == hart::Step::images) throw std::runtime_error("at the end");
    });
    std::string what;
    try {
        static_cast<void>(model.generate(request));
    } catch (const std::runtime_error &error) {
        what = error.what();
    }
    CHECK(what == "at the end");

    // An error of hart keeps its status, and exceptions of other types pass through.
    request.observer([&](const hart::Event &) { static_cast<void>(hart::Image::open("no such file.png")); });
    THROWS(model.generate(request), io, "no such file.png");
    request.observer([](const hart::Event &) { throw 7; });
    int number = 0;
    try {
        static_cast<void>(model.generate(request));
    } catch (const int thrown_number) {
        number = thrown_number;
    }
    CHECK(number == 7);
}

/* An observer that uses its own request: changing or running it fails, and destroying it takes effect after the run. */
void observers_that_use_their_request(const hart::Model &model) {
    auto request = std::make_unique<hart::Request>("a house");
    const auto plain = generate(model, "a house", 0);
    const auto inside = generate(model, "a parrot", 1);
    bool nested = false, gone = false;
    auto own = std::make_unique<hart::Model>(model.share());
    request->observer([&, alive = std::make_shared<int>(5)](const hart::Event &event) {
        if (event.step() == hart::Step::scale && !nested) {
            nested = true;
            THROWS(request->seed(1), state, "running");
            THROWS(request->without_observer(), state, "running");
            THROWS(request->observer([](const hart::Event &) {}), state, "running");
            THROWS(own->generate(*request), state, "running");
            CHECK(same(generate(*own, "a parrot", 1), inside));
        }
        if (event.step() == hart::Step::scale_done && !gone) {
            gone = true;
            const hart::Request taken = std::move(*request);
            own.reset();
            CHECK(*alive == 5);
        }
        CHECK(*alive == 5);
    });
    const hart::Model &used = *own;
    CHECK(same(used.generate(*request).image(0), plain));
    CHECK(nested && gone && !own);
}

void cancelling(const hart::Model &model) {
    hart::Cancel cancel;
    auto request = hart::Request("a parrot").images_per_prompt(3).seed(20);
    request.cancel_token(cancel);

    // From another thread, while the observer waits for it.
    bool requested = false;
    request.observer([&](const hart::Event &event) {
        if (event.step() != hart::Step::scale || requested) return;
        requested = true;
        std::thread([&] { cancel.request(); }).join();
    });
    THROWS(model.generate(request), cancelled, "0 of 3");
    CHECK(requested && cancel.is_requested());

    // From another thread, at any time.
    cancel.reset();
    CHECK(!cancel.is_requested());
    std::promise<void> start;
    bool started = false;
    request.observer([&](const hart::Event &) {
        if (!std::exchange(started, true)) start.set_value();
    });
    request.images_per_prompt(1000);
    std::thread other([&] {
        start.get_future().wait();
        cancel.request();
    });
    THROWS(model.generate(request), cancelled, "of 1000");
    other.join();
    request.images_per_prompt(3).without_observer();

    // Before the run.
    THROWS(model.generate(request), cancelled, "0 of 3");

    // A cancelled preview throws in the observer. generate() still throws Cancelled with the finished images.
    cancel.reset();
    std::size_t before = 0;
    request.observer([&](const hart::Event &event) {
        if (event.step() == hart::Step::images) ++before;
        if (event.step() != hart::Step::scale_done || before == 0) return;
        cancel.request();
        static_cast<void>(event.preview(4));
    });
    bool caught = false;
    try {
        static_cast<void>(model.generate(request));
    } catch (const hart::Cancelled &cancelled) {
        caught = before > 0 && before < 3 && cancelled.images().size() == before;
    }
    CHECK(caught);

    // By the observer, after the second image. The finished images are in the exception and outlive it.
    cancel.reset();
    request.observer([](const hart::Event &event) {
        const bool enough = event.step() == hart::Step::images && event.index() == 2;
        return enough ? hart::Control::cancel : hart::Control::go_on;
    });
    std::vector<hart::Image> finished;
    try {
        static_cast<void>(model.generate(request));
        CHECK(false);
    } catch (const hart::Cancelled &cancelled) {
        CHECK(cancelled.status() == hart::Status::cancelled);
        CHECK(std::string_view(cancelled.what()).find("2 of 3") != std::string_view::npos);
        CHECK(cancelled.result().count() == 2 && cancelled.result().timings().total == 0);
        const hart::Cancelled copy = cancelled;
        finished = copy.images();
    }
    CHECK(finished.size() == 2 && same(finished[0], generate(model, "a parrot", 20)) && same(finished[1], generate(model, "a parrot", 21)));

    // Without the token, and after the token is destroyed.
    cancel.request();
    request.without_observer().images_per_prompt(1).without_cancel_token();
    CHECK(same(model.generate(request).image(0), finished[0]));
    {
        const hart::Cancel brief;
        request.cancel_token(brief);
    }
    CHECK(same(model.generate(request).image(0), finished[0]));
    CHECK(same(model.generate(hart::Request("a parrot").seed(20).cancel_token(hart::Cancel()).without_cancel_token()).image(0), finished[0]));
}

std::vector<char> contents(const fs::path &path) {
    std::ifstream file(path, std::ios::binary);
    CHECK(file.is_open());
    return std::vector<char>((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
}

void files(const fs::path &folder) {
    hart::Files files;
    std::optional<hart::Model> opened;
    bool by_reader = false;
    for (const auto &entry : fs::recursive_directory_iterator(folder)) {
        // PyTorch files can only be read from a folder.
        if (!entry.is_regular_file() || entry.path().extension() == ".bin") continue;
        const auto name = entry.path().lexically_relative(folder).generic_u8string();
        // Half of them as bytes, half through a reader.
        by_reader = !by_reader;
        if (by_reader) {
            std::ifstream file(entry.path(), std::ios::binary);
            files.add_reader(name, entry.file_size(), [&](std::uint64_t offset, hart::span<std::uint8_t> buffer) {
                file.seekg(static_cast<std::streamoff>(offset));
                file.read(reinterpret_cast<char *>(buffer.data()), static_cast<std::streamsize>(buffer.size()));
                return file.good();
            });
        } else {
            const auto bytes = contents(entry.path());
            files.add(name, bytes.data(), bytes.size());
        }
    }
    files.add("empty", nullptr, 0);
    THROWS(files.add_reader("a", 4, [](std::uint64_t, hart::span<std::uint8_t>) { return false; }), io, "a: the reader");
    THROWS(files.add_reader("a", 4, hart::Reader()), null, "reader");
    bool caught = false;
    try {
        files.add_reader("a", 4, [](std::uint64_t offset, hart::span<std::uint8_t> buffer) -> bool {
            CHECK(offset == 0 && buffer.size() == 4);
            throw Oops(3);
        });
    } catch (const Oops &oops) {
        caught = oops.number == 3;
    }
    CHECK(caught);
    THROWS(files.add("b", nullptr, 1), null, "data");
    const hart::Options plain = hart::Options().weights("plain");
    opened = hart::Model::from_files(files, plain);
    CHECK(hart::Model::from_files(files).info().width == opened->info().width);
    const auto limited = [&] { return hart::Model::from_files(files, hart::Options().max_memory(1000)); };
    THROWS(limited(), memory, "memory");
    { const hart::Files gone = std::move(files); }
    const auto model = hart::Model::open(folder, plain);
    const auto info = opened->info(), expected = model.info();
    CHECK(info.width == expected.width && info.parameters == expected.parameters && info.fingerprint == expected.fingerprint);
    CHECK(same(generate(*opened, "a sunflower", 4), generate(model, "a sunflower", 4)));
    THROWS(hart::Model::from_files(hart::Files()), checkpoint, "");
}

void tokens(const hart::Model &model, const std::string &path, bool trained) {
    const auto image = generate(model, "a banana", 1);
    std::optional<hart::Tokens> tokens;
    {
        const auto own = model.share();
        tokens = own.tokenize(image);
    }
    const auto info = model.info();
    CHECK(tokens->scales() == info.scales && tokens->codes(0).size() == 1);
    for (std::size_t scale = 0; scale < tokens->scales(); ++scale) {
        for (const std::uint32_t code : tokens->codes(scale)) CHECK(code < info.codes);
    }
    THROWS(tokens->codes(tokens->scales()), argument, "scales");
    const auto distance = [&](const hart::Image &other) {
        CHECK(other.pixels().size() == image.pixels().size());
        long sum = 0;
        for (std::size_t i = 0; i < image.pixels().size(); ++i) sum += std::abs(int{image.pixels()[i]} - int{other.pixels()[i]});
        return sum;
    };
    const long with = distance(model.reconstruct(*tokens)), without = distance(model.reconstruct(*tokens, false));
    CHECK(trained ? with < without : with != without);
    CHECK(same(model.reconstruct(*tokens, true), model.reconstruct(*tokens)));
    const std::vector<std::uint8_t> black(3 * 5 * 5);
    THROWS(model.tokenize(hart::Image::from_pixels(5, 5, black)), request, "5");
    const auto second = hart::Model::open(path);
    THROWS(second.reconstruct(*tokens), argument, "another model");
}

/* Encoded prompts. */
void contexts(const hart::Model &model, const std::string &path) {
    auto request = hart::Request("a banana").add_prompt("a crown").seed(4);
    const auto expected = model.generate(request).image(1);
    int text = 0, others = 0;
    const auto count = [&](const hart::Event &event) { ++(event.stage() == hart::Stage::text ? text : others); };
    request.observer(count);
    auto context = model.encode(request);
    CHECK(text > 0 && others == 0 && context.count() == 2);
    const auto info = model.info();
    for (std::size_t i = 0; i < context.count(); ++i) {
        const auto hidden = context.hidden(i);
        CHECK(hidden.tokens == info.context_tokens && hidden.values.size() == hidden.tokens * hidden.channels);
        CHECK(context.mask(i).size() == hidden.tokens && context.mask(i)[0] == 1);
        CHECK(same(hidden.values, context.hidden(i).values));
    }
    CHECK(!same(context.hidden(0).values, context.hidden(1).values));
    CHECK(context.bytes() >= 2 * sizeof(float) * context.hidden(0).values.size());
    THROWS(context.hidden(2), argument, "2 prompts");
    THROWS(context.mask(2), argument, "2 prompts");

    text = others = 0;
    auto with = hart::Request().context(context).seed(4).observer(count);
    context = model.encode(hart::Request("a house"));
    const auto image = model.generate(with).image(1);
    CHECK(same(image, expected) && image.prompt() == "a crown" && image.settings() == expected.settings());
    CHECK(text == 0 && others > 0);
    THROWS(with.prompt("a house"), request, "the context encodes 2");
    THROWS(with.system_prompt("Draw: "), request, "the context was encoded with the model's");
    THROWS(hart::Model::open(path).generate(with), request, "belongs to another model");
    CHECK(model.share().generate(with).count() == 2);
    CHECK(same(model.generate(with.without_context().prompt("a crown")).image(0), expected));

    // Cancelled, and with an exception of the observer.
    THROWS(model.encode(with.observer([](const hart::Event &) { return hart::Control::cancel; })), cancelled, "cancelled");
    try {
        static_cast<void>(model.encode(with));
        CHECK(false);
    } catch (const hart::Cancelled &cancelled) {
        CHECK(cancelled.images().empty() && cancelled.result().count() == 0);
    }
    try {
        static_cast<void>(model.encode(with.observer([](const hart::Event &) { throw Oops(3); })));
        CHECK(false);
    } catch (const Oops &oops) {
        CHECK(oops.number == 3);
    }
    THROWS(model.encode(hart::Request()), request, "prompt");
    CHECK(same(model.generate(hart::Request("a crown").seed(4).context(context).without_context().prompt("a crown")).image(0), expected));
}

void threads(const hart::Model &model, int count, int rounds) {
    std::vector<hart::Image> expected;
    for (int i = 0; i < count; ++i) expected.push_back(generate(model, "a rocket", static_cast<std::uint64_t>(i)));
    std::vector<std::thread> all;
    std::vector<int> passed(static_cast<std::size_t>(count), 0);
    for (int i = 0; i < count; ++i) {
        all.emplace_back([&, i] {
            const auto at = static_cast<std::size_t>(i);
            for (int round = 0; round < rounds; ++round) {
                const auto image = generate(model, "a rocket", static_cast<std::uint64_t>(i));
                // Images of another thread may be read here. Each thread has its own errors.
                const auto error = thrown([&] { static_cast<void>(hart::Image::open("nothing-" + std::to_string(i))); });
                const bool named = error && std::string_view(error->what()).find("nothing-" + std::to_string(i)) != std::string_view::npos;
                passed[at] += same(image, expected[at]) && expected[0].png().size() > 8 && named ? 1 : 0;
            }
        });
    }
    for (auto &thread : all) thread.join();
    for (const int rounds_passed : passed) CHECK(rounds_passed == rounds);
}

/* Generation from an image. */
void editing(const hart::Model &model) {
    const auto start = generate(model, "a house", 2);
    const std::vector<std::uint8_t> white(start.pixels().size(), 255);
    const auto mask = hart::Image::from_pixels(start.width(), start.height(), white);
    const auto corner = hart::Image::from_pixels(1, 1, hart::span<const std::uint8_t>(white.data(), 3));
    auto request = hart::Request("a panda").seed(5).inpaint(start, mask);
    const auto names = [&](const char *part) {
        const auto image = model.generate(request).image(0);
        return !same(image, start) && image.settings() && image.settings()->find(part) != std::string_view::npos;
    };
    CHECK(names("inpainting"));
    CHECK(names("inpainting of an image"));
    request.keep(hart::Keep::latent);
    CHECK(names("keep latent"));
    request.keep(hart::Keep::pixels);
    const auto black = mask.transparency();
    CHECK(black.width() == mask.width() && black.pixels()[0] == 0);
    THROWS(model.generate(hart::Request("a panda").inpaint(start, black)), request, "keeps everything");
    const auto wide = hart::Image::from_pixels(2, 1, hart::span<const std::uint8_t>(white.data(), 6));
    THROWS(model.generate(hart::Request("a panda").inpaint(start, wide)), request, "its mask 2 x 1");
    request.vary(start, 1);
    CHECK(names("variation"));
    request.outpaint(corner, 0, 0);
    CHECK(names("outpainting"));
    request.vary(corner, 1);
    THROWS(model.generate(request), request, "resize it");
    request.without_image();
    CHECK(same(model.generate(request).image(0), generate(model, "a panda", 5)));
}

/* Pixels in the formats of other programs. */
void formats() {
    const std::vector<std::uint8_t> bgra{0, 0, 255, 255, 80, 80, 80, 255, 0, 0, 0, 128, 1, 2, 3, 0};
    const auto image = hart::Image::from_pixels(hart::PixelFormat::bgra, 2, 2, bgra);
    const std::vector<std::uint8_t> rgb{255, 0, 0, 80, 80, 80, 127, 127, 127, 255, 255, 255};
    CHECK(same(image.pixels(), hart::span<const std::uint8_t>(rgb)));
    CHECK(image.pixels(hart::PixelFormat::rgb) == rgb);
    CHECK(image.pixels(hart::PixelFormat::grey) == (std::vector<std::uint8_t>{76, 80, 127, 255}));
    CHECK(image.pixels(hart::PixelFormat::bgra)[11] == 255 && image.pixels(hart::PixelFormat::rgba).size() == 16);
    CHECK(same(hart::Image::from_pixels(hart::PixelFormat::bgr, 2, 2, image.pixels(hart::PixelFormat::bgr)), image));
    std::vector<std::uint8_t> padded(20, 7);
    image.copy_pixels(hart::PixelFormat::rgb, {padded.data(), padded.size()}, 10);
    CHECK(padded[5] == 80 && padded[6] == 7 && padded[10] == 127 && padded[16] == 7);
    THROWS(image.copy_pixels(hart::PixelFormat::rgb, {padded.data(), padded.size()}), argument, "expected 12");
    THROWS(image.copy_pixels(static_cast<hart::PixelFormat>(9), {padded.data(), 12}), argument, "`format` is 9");
    THROWS(hart::Image::from_pixels(hart::PixelFormat::rgba, 2, 2, rgb), argument, "expected 16");
    const auto holes = image.transparency();
    CHECK(holes.pixels()[6] == 127 && holes.pixels()[9] == 255);
    // Another object of the same image.
    std::optional<hart::Image> first(hart::Image::from_pixels(1, 1, {rgb.data(), 3}));
    const auto second = first->share();
    const auto *const png = first->png().data();
    first.reset();
    CHECK(second.pixels()[0] == 255 && second.png().data() == png);
}

/* What was set on requests and options, copies of both, and more objects of results, tokens, contexts and tokens to cancel. */
void settings(const hart::Model &model) {
    const hart::Request nothing;
    CHECK(nothing.prompts().empty() && !nothing.images_per_prompt() && !nothing.seed() && !nothing.guidance());
    CHECK(!nothing.smoothing() && !nothing.top_k() && !nothing.top_p() && !nothing.steps() && !nothing.prune() && !nothing.system_prompt());
    CHECK(!nothing.context() && !nothing.inpaint() && !nothing.outpaint() && !nothing.vary() && !nothing.keep());
    CHECK(!nothing.observer() && !nothing.cancel_token());
    int events = 0;
    hart::Cancel cancel;
    const std::vector<std::uint8_t> white(6, 255);
    const auto image = hart::Image::from_pixels(2, 1, white);
    auto request = hart::Request("a house").add_prompt("a key").images_per_prompt(1).seed(0).guidance(0).smoothing(false);
    request.top_k(30).top_p(0.5).steps("4").prune("0.25").system_prompt("").keep(hart::Keep::latent).cancel_token(cancel);
    request.inpaint(image, image, 3).observer([&](const hart::Event &) { ++events; });
    CHECK(request.inpaint()->kept_scales == 3 && same(request.inpaint()->mask, image) && !request.vary());
    request.outpaint(image, 5, 6);
    CHECK(request.outpaint()->left == 5 && request.outpaint()->top == 6 && !request.inpaint());
    request.vary(image, 2);
    CHECK(request.vary()->kept_scales == 2 && same(request.vary()->image, image) && !request.outpaint());
    auto copy = request.clone();
    request.prompt("another").seed(8).without_image().without_observer();
    { const auto gone = std::move(request); }
    CHECK((copy.prompts() == std::vector<std::string>{"a house", "a key"}));
    CHECK(copy.images_per_prompt() == 1u && copy.seed() == 0u && copy.guidance() == 0.0 && copy.smoothing() == false);
    CHECK(copy.top_k() == 30u && copy.top_p() == 0.5 && copy.steps() == "4" && copy.prune() == "0.25" && copy.system_prompt() == "");
    CHECK(copy.keep() == hart::Keep::latent && copy.vary() && copy.observer());
    cancel.request();
    CHECK(copy.cancel_token()->is_requested() && cancel.share().is_requested());
    cancel.reset();
    copy.without_image();
    const auto result = model.generate(copy);
    CHECK(events > 0 && result.share().count() == 2);
    copy.default_system_prompt().without_observer();
    CHECK(!copy.system_prompt() && !copy.observer());
    const auto context = model.encode(copy);
    CHECK(context.share().count() == 2);
    copy = hart::Request().context(context);
    CHECK(copy.context()->count() == 2 && copy.prompts().size() == 2);
    const auto tokens = model.tokenize(result.image(0));
    CHECK(same(model.reconstruct(tokens.share()), model.reconstruct(tokens)));
    // The exception of an observer belongs to the run of its own request.
    auto thrower = hart::Request("a house").observer([](const hart::Event &) { throw Oops(4); });
    const auto other = thrower.clone();
    bool caught = false;
    try {
        static_cast<void>(model.generate(other));
    } catch (const Oops &) {
        caught = true;
    }
    CHECK(caught);
    thrower.without_observer();
    CHECK(model.generate(thrower).count() == 1);

    const hart::Options none;
    CHECK(!none.device() && !none.precision() && !none.text_model() && !none.weights() && !none.memory_map() && !none.strict());
    CHECK(!none.threads() && !none.parallel() && !none.max_memory() && !none.keep_text_model() && !none.observer() && !none.cancel_token());
    auto set = hart::Options().device("cpu").precision("f32").text_model(fs::path("a") / "b").weights("ema").memory_map(false);
    set.strict(true).threads(0).parallel(5).max_memory(7).keep_text_model(false).cancel_token(cancel).observer([](const hart::Event &) {});
    const auto same_options = set.clone();
    set.strict(false).without_cancel_token().without_observer();
    CHECK(!set.cancel_token() && !set.observer());
    CHECK(same_options.device() == "cpu" && same_options.precision() == "f32" && same_options.text_model() == (fs::path("a") / "b").string());
    CHECK(same_options.weights() == "ema" && same_options.memory_map() == false && same_options.strict() == true);
    CHECK(same_options.threads() == 0u && same_options.parallel() == 5u && same_options.max_memory() == 7u && same_options.keep_text_model() == false);
    CHECK(same_options.observer() && same_options.cancel_token());
}

/* Progress, exceptions and cancellation of opening. */
void opening(const fs::path &path) {
    for (const std::uint32_t threads : {0u, 1u}) {
        std::uint32_t last = 0, count = 0;
        float fraction = 0;
        auto options = hart::Options().weights("plain").threads(threads).observer([&](const hart::Event &event) {
            CHECK(event.step() == hart::Step::tensor && event.index() == ++last && event.fraction() >= fraction);
            count = event.count();
            fraction = event.fraction();
        });
        CHECK(hart::Model::open(path, options).info().width > 0 && last == count && count > 20 && fraction == 1.0f);
        options.observer([](const hart::Event &event) { return event.index() == 3 ? hart::Control::cancel : hart::Control::go_on; });
        THROWS(hart::Model::open(path, options), cancelled, "cancelled");
        options.observer([](const hart::Event &) { throw Oops(5); });
        for (int i = 0; i < 2; ++i) {
            int number = 0;
            try {
                static_cast<void>(hart::Model::open(path, options));
            } catch (const Oops &oops) {
                number = oops.number;
            }
            CHECK(number == 5);
        }
        const hart::Cancel cancel;
        options.without_observer().cancel_token(cancel);
        cancel.request();
        bool caught = false;
        try {
            static_cast<void>(hart::Model::open(path, options));
        } catch (const hart::Cancelled &cancelled) {
            caught = cancelled.images().empty();
        }
        CHECK(caught);
        cancel.reset();
        CHECK(hart::Model::open(path, options).info().width > 0);
    }
    // An observer that destroys its own options.
    auto own = std::make_unique<hart::Options>();
    own->weights("plain").observer([&](const hart::Event &) { own.reset(); });
    CHECK(hart::Model::open(path, *own).info().width > 0 && own == nullptr);
}

/* Files that are not copied. */
void borrowed_files(const fs::path &folder) {
    std::map<std::string, std::vector<char>> contents_of;
    int added = 0, released = 0;
    std::optional<hart::Model> model;
    {
        hart::Files files;
        for (const auto &entry : fs::recursive_directory_iterator(folder)) {
            if (!entry.is_regular_file() || entry.path().extension() == ".bin") continue;
            const auto name = entry.path().lexically_relative(folder).generic_string();
            const auto bytes = contents(entry.path());
            auto &kept = contents_of[name] = std::vector<char>(bytes.begin(), bytes.end());
            files.add_borrowed(name, kept.data(), kept.size(), [&contents_of, &released, name] {
                contents_of.erase(name);
                ++released;
            });
            ++added;
        }
        static const char last = 1;
        files.add_borrowed("last", &last, 1);
        THROWS(files.add_borrowed("last", &last, 1, [&] { released += 100; }), request, "already");
        CHECK(released == 100);
        released = 0;
        model = hart::Model::from_files(files, hart::Options().weights("plain"));
    }
    CHECK(same(generate(*model, "a sunflower", 4), generate(hart::Model::open(folder, hart::Options().weights("plain")), "a sunflower", 4)));
    model.reset();
    CHECK(released == added && contents_of.empty());
}

/* The log receives panics. Its exceptions are ignored. */
void log(const std::string &path) {
    std::string text;
    const auto model = hart::Model::open(path);
    hart::set_log([&text](hart::LogLevel level, std::string_view message) {
        if (level == hart::LogLevel::error) text = message;
        throw Oops(1);
    });
    CHECK(hart_model_test_panic(model.get()) == HART_ERR_PANIC);
    hart::set_log(nullptr);
    CHECK(text.find("a test panic") != std::string::npos);
}

/* A panic in hart throws, the program continues, and the model is poisoned. */
void panics(const std::string &path) {
    auto model = hart::Model::open(path);
    CHECK(hart_model_test_panic(model.get()) == HART_ERR_PANIC);
    THROWS(model.generate(hart::Request("a house")), poisoned, "panicked");
    THROWS(model.share().memory(), poisoned, "panicked");
    model = hart::Model::open(path);
    CHECK(model.generate(hart::Request("a house")).count() == 1);
}

} // namespace

int main(int argc, char **argv) {
    const bool brief = argc == 4 && std::string_view(argv[3]) == "brief";
    if (argc != 3 && !brief) {
        std::fprintf(stderr, "usage: %s MODEL SCRATCH [brief]\n", argv[0]);
        return 2;
    }
    const std::string path = argv[1];
    const fs::path scratch = argv[2];
    fs::create_directories(scratch);
    try {
        const auto model = hart::Model::open(path);
        CHECK(same(generate(model, "a parrot", 7), generate(model, "a parrot", 7)));
        CHECK(!same(generate(model, "a parrot", 7), generate(model, "a parrot", 8)));
        library();
        editing(model);
        span_of_values();
        strings();
        models(model);
        options(path);
        requests(model);
        images(model, scratch);
        moves(model, path);
        events(model);
        observers_that_throw(model);
        observers_that_use_their_request(model);
        cancelling(model);
        files(path);
        tokens(model, path, !brief);
        contexts(model, path);
        threads(model, brief ? 2 : 8, brief ? 1 : 4);
        formats();
        settings(model);
        opening(path);
        borrowed_files(path);
        log(path);
        panics(path);
    } catch (const std::exception &error) {
        std::fprintf(stderr, "uncaught exception: %s\n", error.what());
        return 1;
    }
    std::puts("hart.hpp: ok");
    return 0;
}
