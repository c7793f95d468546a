/* hart: text to image in any program, for C++17 and later. A thin layer over hart.h: objects that free themselves, and exceptions.
 *
 * A complete program:
 *
 *     #include <cstdio>
 *     #include <hart.hpp>
 *
 *     int main(int argc, char **argv) try {
 *         if (argc != 4) {
 *             std::fprintf(stderr, "usage: %s MODEL PROMPT OUT.png\n", argv[0]);
 *             return 2;
 *         }
 *         const auto model = hart::Model::open(argv[1]);
 *         const auto request = hart::Request(argv[2]).seed(7).observer([](const hart::Event &event) {
 *             std::fprintf(stderr, "\r%3.0f %%", 100.0 * event.fraction());
 *         });
 *         model.generate(request).image(0).save(argv[3]);
 *         return 0;
 *     } catch (const hart::Error &error) {
 *         std::fprintf(stderr, "\n%s\n", error.what());
 *         return 1;
 *     }
 *
 * Rules, for everything here:
 *
 * Errors    What fails throws hart::Error, whose what() says what was wrong and what to do. A run that was cancelled throws
 *           hart::Cancelled. A program that is built without exceptions includes hart.h instead, which answers with a status.
 * Objects   are moved, not copied. One that was moved from may be destroyed or assigned to; it counts as empty, and what needs more
 *           throws an Error with Status::null.
 * Views     (spans and string_views) lie in the object that gave them, and are valid until it is destroyed, also if it is moved.
 * Texts     are UTF-8: std::string and the like on every system, u8"" too. Paths may be std::filesystem::path as well.
 * Callbacks may throw. Nothing is thrown through hart: the run is cancelled, and generate() throws what the callback threw.
 * Threads   as in hart.h: Model and Cancel may be used by any number of threads at once; Image, Result and Tokens too, since nothing
 *           changes in them; Request, Options and Files by one at a time.
 *
 * Linking   As hart.h: the hart library, nothing else.
 */

#ifndef HART_HPP
#define HART_HPP

#include <cstddef>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if __has_include(<version>)
#include <version>
#endif
#if defined(__cpp_lib_span)
#include <span>
#endif

#include "hart.h"

namespace hart {

// Classes that hold or give a span differ between language versions, and so do their names. Parts of a program that were compiled as
// C++17 and as C++20 may each use hart; what one hands to the other doesn't link by mistake.
#if defined(__cpp_lib_span)
inline namespace cxx20 {

/// Values that lie one after another in an object of somebody else's.
template <class T>
using span = std::span<T>;
#else
inline namespace cxx17 {

/// Values that lie one after another in an object of somebody else's: as much of C++20's std::span as hart needs.
template <class T>
class span {
public:
    /// No values.
    constexpr span() noexcept = default;
    /// `size` values at `data`.
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    /// The values of a container, such as a std::vector or another span.
    template <class C, std::enable_if_t<std::is_convertible_v<decltype(std::declval<const C &>().data()), T *>, int> = 0>
    constexpr span(const C &values) noexcept : data_(values.data()), size_(values.size()) {}

    /// The first value.
    [[nodiscard]] constexpr T *data() const noexcept { return data_; }
    /// How many there are.
    [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }
    /// Whether there are none.
    [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }
    /// The first value.
    [[nodiscard]] constexpr T *begin() const noexcept { return data_; }
    /// Behind the last value.
    [[nodiscard]] constexpr T *end() const noexcept { return data_ + size_; }
    /// Value `index`, which must be there.
    [[nodiscard]] constexpr T &operator[](std::size_t index) const { return data_[index]; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
#endif

/* ---- Errors ---------------------------------------------------------------- */

/// What a call came to. Later versions may add some, so treat one that you don't know as an error.
enum class Status : std::int32_t {
    /// Done.
    ok = HART_OK,
    /// The run was cancelled, which is no error.
    cancelled = HART_CANCELLED,
    /// An object is empty: it was moved from.
    null = HART_ERR_NULL,
    /// A text is not UTF-8.
    utf8 = HART_ERR_UTF8,
    /// An argument won't do.
    argument = HART_ERR_ARGUMENT,
    /// The request can't be carried out as it stands.
    request = HART_ERR_REQUEST,
    /// Not now: the request is running, or the event has no preview.
    state = HART_ERR_STATE,
    /// The program was compiled for a newer hart than the library is.
    abi = HART_ERR_ABI,
    /// The prompt filter refuses the prompt.
    refused = HART_ERR_REFUSED,
    /// A file or folder can't be read or written.
    io = HART_ERR_IO,
    /// A checkpoint's file is missing or is not what its name promises.
    checkpoint = HART_ERR_CHECKPOINT,
    /// A value in a configuration file won't do.
    config = HART_ERR_CONFIG,
    /// The tensors of a checkpoint are not those that its configuration asks for.
    weights = HART_ERR_WEIGHTS,
    /// A tensor of a checkpoint holds NaN or an infinity.
    not_finite = HART_ERR_NOT_FINITE,
    /// A picture file is not what its name promises.
    picture = HART_ERR_PICTURE,
    /// The device is not compiled in, not there, or has failed.
    device = HART_ERR_DEVICE,
    /// More memory is needed than there is, or than Options::max_memory allows.
    memory = HART_ERR_MEMORY,
    /// The numbers of a run are no longer finite.
    overflow = HART_ERR_OVERFLOW,
    /// A defect in hart: it panicked. The program goes on, but not with this model.
    panic = HART_ERR_PANIC,
    /// The model has panicked before: open it again.
    poisoned = HART_ERR_POISONED,
    /// An error that this version has no number for.
    other = HART_ERR_OTHER,
};

/// What a status means, in a few English words.
[[nodiscard]] inline const char *text(Status status) noexcept { return hart_status_text(static_cast<hart_status>(status)); }

/// Why something failed: what() says what was wrong, where, and what was expected.
class Error : public std::runtime_error {
public:
    /// An error of the caller's own, for callbacks and tests.
    Error(Status status, const std::string &message) : std::runtime_error(message), status_(status) {}

    /// What kind of failure it was.
    [[nodiscard]] Status status() const noexcept { return status_; }

private:
    Status status_;
};

namespace detail {

/// Throws what the call that has just failed on this thread left behind.
inline void check(hart_status status) {
    if (status != HART_OK) throw Error(static_cast<Status>(status), hart_last_error());
}

struct Free {
    void operator()(hart_cancel *object) const noexcept { hart_cancel_free(object); }
    void operator()(hart_device_list *object) const noexcept { hart_device_list_free(object); }
    void operator()(hart_files *object) const noexcept { hart_files_free(object); }
    void operator()(hart_image *object) const noexcept { hart_image_free(object); }
    void operator()(hart_model *object) const noexcept { hart_model_free(object); }
    void operator()(hart_options *object) const noexcept { hart_options_free(object); }
    void operator()(hart_request *object) const noexcept { hart_request_free(object); }
    void operator()(hart_result *object) const noexcept { hart_result_free(object); }
    void operator()(hart_tokens *object) const noexcept { hart_tokens_free(object); }
};

template <class T>
using Handle = std::unique_ptr<T, Free>;

/// What a C function gives through its last argument.
template <class T, class... Parameters, class... Arguments>
[[nodiscard]] Handle<T> make(hart_status (*function)(Parameters...), Arguments... arguments) {
    T *object = nullptr;
    check(function(arguments..., &object));
    return Handle<T>(object);
}

/// A struct that C fills, with its size set.
template <class T>
[[nodiscard]] T sized() noexcept {
    T value{};
    value.struct_size = sizeof(T);
    return value;
}

struct Watcher;

} // namespace detail

/* ---- Texts ----------------------------------------------------------------- */

/// A text that goes to hart, made from whatever holds UTF-8: "", u8"", std::string, std::string_view and the like.
class Text {
public:
    /// Copies the text, which must not hold a NUL.
    template <class T, std::enable_if_t<std::is_convertible_v<const T &, std::string_view>, int> = 0>
    Text(const T &text) : Text(std::string(view(text)), 0) {}
#if defined(__cpp_char8_t)
    /// Copies the text, which must not hold a NUL.
    template <class T, std::enable_if_t<std::is_convertible_v<const T &, std::u8string_view>, int> = 0>
    Text(const T &text) : Text(from(static_cast<std::u8string_view>(text)), 0) {}
#endif

    /// The text, ended by NUL.
    [[nodiscard]] const char *c_str() const noexcept { return text_.c_str(); }

protected:
    /// `text` as it is, if C can hold it.
    Text(std::string text, int) : text_(std::move(text)) {
        const auto nul = text_.find('\0');
        if (nul != std::string::npos) {
            throw Error(Status::argument, "a text holds NUL at byte " + std::to_string(nul) + ", which would end it there");
        }
    }

    /// The bytes of a text of char8_t or char.
    template <class T>
    [[nodiscard]] static std::string from(const T &text) {
        return std::string(reinterpret_cast<const char *>(text.data()), text.size());
    }

private:
    [[nodiscard]] static std::string_view view(std::string_view text) noexcept { return text; }
    [[nodiscard]] static std::string_view view(const char *text) {
        if (text == nullptr) throw Error(Status::null, "a text is NULL");
        return text;
    }

    std::string text_;
};

/// A path that goes to hart: a std::filesystem::path, or a text in UTF-8, on Windows too.
class Path : public Text {
public:
    using Text::Text;

    /// Converts a path to UTF-8.
    Path(const std::filesystem::path &path) : Text(from(path.u8string()), 0) {}
};

/* ---- The library ----------------------------------------------------------- */

/// Version of the library that runs, such as "0.1.0".
[[nodiscard]] inline std::string_view version() noexcept { return hart_version_text(); }

/// What is built in, as one line of JSON: version, abi, backends (such as "cpu", "cuda"), target, commit (or "unknown").
[[nodiscard]] inline std::string_view build_info() noexcept { return hart_build_info(); }

/// Something that a model can compute on.
struct Device {
    /// Name for Options::device.
    std::string name;
    /// What it is, for people.
    std::string description;
};

/// The devices that are compiled in and there, the best first.
[[nodiscard]] inline std::vector<Device> devices() {
    const auto list = detail::make<hart_device_list>(hart_device_list_new);
    std::vector<Device> found(hart_device_list_count(list.get()));
    for (std::size_t i = 0; i < found.size(); ++i) {
        auto info = detail::sized<hart_device_info>();
        detail::check(hart_device_list_get(list.get(), i, &info));
        found[i] = {info.name, info.description};
    }
    return found;
}

/* ---- Images ---------------------------------------------------------------- */

/// A picture of 8-bit RGB. It never changes, and outlives the result and the model that it came from.
class Image {
public:
    /// A picture from pixels, which are copied: rows of 3 * width bytes, red, green, blue, from the top left. `stride` is the bytes from
    /// one row to the next, 0 for 3 * width.
    [[nodiscard]] static Image from_pixels(
        std::uint32_t width, std::uint32_t height, span<const std::uint8_t> pixels, std::size_t stride = 0) {
        const std::uint64_t row = std::uint64_t{3} * width, step = stride == 0 ? row : stride;
        // hart says what is wrong with the other numbers; how many bytes there are is known only here.
        if (height > 0 && (pixels.size() < row || (height > 1 && (pixels.size() - row) / (height - 1) < step))) {
            throw Error(Status::argument, std::to_string(pixels.size()) + " bytes for " + std::to_string(width) + " x "
                                              + std::to_string(height) + " pixels with a stride of " + std::to_string(step)
                                              + " bytes: expected more");
        }
        return Image(detail::make<hart_image>(hart_image_new, width, height, stride, pixels.data()));
    }

    /// Reads a PNG file of any colour type; transparency is laid over white. Prompt, seed and settings are read too, if hart wrote them.
    [[nodiscard]] static Image open(const Path &path) { return Image(detail::make<hart_image>(hart_image_open, path.c_str())); }

    /// Reads a PNG file that is in memory, as open() does.
    [[nodiscard]] static Image from_png(span<const std::uint8_t> file) {
        return Image(detail::make<hart_image>(hart_image_open_memory, file.data(), file.size()));
    }

    /// Images of one size side by side, in rows of `columns`.
    [[nodiscard]] static Image grid(span<const Image> images, std::size_t columns) {
        std::vector<const hart_image *> all;
        all.reserve(images.size() + 1); // An address, even of none.
        for (const Image &image : images) all.push_back(image.get());
        const hart_image *const *first = all.data();
        return Image(detail::make<hart_image>(hart_image_grid, first, all.size(), columns));
    }

    /// Moves; the other is empty then.
    Image(Image &&other) noexcept : handle_(std::move(other.handle_)), view_(std::exchange(other.view_, {})) {}
    /// Moves; the other is empty then.
    Image &operator=(Image &&other) noexcept {
        handle_ = std::move(other.handle_);
        view_ = std::exchange(other.view_, {});
        return *this;
    }

    /// Pixels in a row.
    [[nodiscard]] std::uint32_t width() const noexcept { return view_.width; }
    /// Rows.
    [[nodiscard]] std::uint32_t height() const noexcept { return view_.height; }
    /// Bytes from one row to the next.
    [[nodiscard]] std::size_t stride() const noexcept { return view_.stride; }

    /// The pixels: 3 bytes each, red, green, blue, from the top left. Valid as long as the image.
    [[nodiscard]] span<const std::uint8_t> pixels() const & noexcept { return {view_.pixels, view_.size}; }
    /// A temporary's pixels would be gone at once: keep the image.
    span<const std::uint8_t> pixels() const && = delete;

    /// The prompt that it was made from, if it was. Valid as long as the image.
    [[nodiscard]] std::optional<std::string_view> prompt() const & noexcept { return optional(view_.prompt); }
    /// A temporary's prompt would be gone at once: keep the image.
    std::optional<std::string_view> prompt() const && = delete;

    /// The other settings in one line, if it was made from a prompt. Valid as long as the image.
    [[nodiscard]] std::optional<std::string_view> settings() const & noexcept { return optional(view_.settings); }
    /// A temporary's settings would be gone at once: keep the image.
    std::optional<std::string_view> settings() const && = delete;

    /// The seed that it was made with, if it was made from a prompt.
    [[nodiscard]] std::optional<std::uint64_t> seed() const noexcept {
        return view_.prompt == nullptr ? std::nullopt : std::optional<std::uint64_t>(view_.seed);
    }

    /// Writes a PNG file, whole or not at all; prompt, seed and settings stand in its text chunks.
    void save(const Path &path) const { detail::check(hart_image_save(get(), path.c_str())); }

    /// The PNG file's bytes, as save() writes them. Valid as long as the image.
    [[nodiscard]] span<const std::uint8_t> png() const & {
        const std::uint8_t *data = nullptr;
        std::size_t size = 0;
        detail::check(hart_image_png(get(), &data, &size));
        return {data, size};
    }
    /// A temporary's bytes would be gone at once: keep the image.
    span<const std::uint8_t> png() const && = delete;

    /// The C object, which stays this one's.
    [[nodiscard]] hart_image *get() const noexcept { return handle_.get(); }

private:
    friend class Event;
    friend class Model;
    friend class Result;

    explicit Image(detail::Handle<hart_image> handle) : handle_(std::move(handle)), view_(detail::sized<hart_image_view>()) {
        detail::check(hart_image_describe(get(), &view_));
    }

    [[nodiscard]] static std::optional<std::string_view> optional(const char *text) noexcept {
        return text == nullptr ? std::nullopt : std::optional<std::string_view>(text);
    }

    detail::Handle<hart_image> handle_;
    hart_image_view view_;
};

/* ---- Hearing and stopping -------------------------------------------------- */

/// What an observer answers.
enum class Control {
    /// Go on.
    go_on,
    /// Stop as soon as possible; the run throws Cancelled.
    cancel,
};

/// The parts of a run, in the order in which the prompt flows through them.
enum class Stage : std::int32_t {
    /// Prompt to context.
    text = HART_STAGE_TEXT,
    /// The transformer, scale by scale.
    transformer = HART_STAGE_TRANSFORMER,
    /// Logits to codes, codes to the latent.
    sampling = HART_STAGE_SAMPLING,
    /// The residual diffusion of the last scale.
    residual = HART_STAGE_RESIDUAL,
    /// Latent to pixels.
    decode = HART_STAGE_DECODE,
};

/// A stage's name in lower case, for people.
[[nodiscard]] inline const char *text(Stage stage) noexcept {
    switch (stage) {
    case Stage::text: return "text";
    case Stage::transformer: return "transformer";
    case Stage::sampling: return "sampling";
    case Stage::residual: return "residual";
    case Stage::decode: return "decode";
    }
    return "another stage";
}

/// What has just been reached.
enum class Step : std::int32_t {
    /// index() of count() layers of the text encoder are done.
    text_layer = HART_STEP_TEXT_LAYER,
    /// Scale index() of count() begins.
    scale = HART_STEP_SCALE,
    /// index() of count() transformer blocks of the scale are done.
    block = HART_STEP_BLOCK,
    /// Scale index() of count() is done, and there is a preview.
    scale_done = HART_STEP_SCALE_DONE,
    /// index() of count() steps of the residual diffusion are done.
    diffusion = HART_STEP_DIFFUSION,
    /// index() of count() blocks of the decoder are done.
    decoder = HART_STEP_DECODER,
    /// index() of count() pictures are finished; the preview is the last of them.
    images = HART_STEP_IMAGES,
    /// One that this version has no name for.
    other = HART_STEP_OTHER,
};

/// One report from a run. Lives during the observer's call only, and can't be copied; a preview that was taken from it may be kept.
class Event {
public:
    Event(const Event &) = delete;
    Event &operator=(const Event &) = delete;

    /// The part of the run.
    [[nodiscard]] Stage stage() const noexcept { return static_cast<Stage>(event_.stage); }
    /// What has just been reached.
    [[nodiscard]] Step step() const noexcept { return static_cast<Step>(event_.step); }
    /// Which one of the step's count(), from 1.
    [[nodiscard]] std::uint32_t index() const noexcept { return event_.index; }
    /// How many there are.
    [[nodiscard]] std::uint32_t count() const noexcept { return event_.count; }
    /// The current scale k, from 1; 0 before the first of a picture.
    [[nodiscard]] std::uint32_t scale() const noexcept { return event_.scale; }
    /// How many scales there are, S; 0 before the first of a picture.
    [[nodiscard]] std::uint32_t scales() const noexcept { return event_.scales; }
    /// Side of the current scale in latent positions; 0 before the first of a picture.
    [[nodiscard]] std::uint32_t side() const noexcept { return event_.side; }
    /// Estimated share of the whole run that is done, 0 to 1; never falls.
    [[nodiscard]] float fraction() const noexcept { return event_.fraction; }
    /// Seconds since the run began.
    [[nodiscard]] double elapsed() const noexcept { return event_.elapsed; }
    /// Whether preview() has something to show.
    [[nodiscard]] bool has_preview() const noexcept { return event_.has_preview != 0; }

    /// The picture as it stands, decoded now: with sides of at most `max_side` pixels but at least those of one latent position (16 in
    /// published models), 0 for the full size. A small one costs little. It never changes the final picture.
    [[nodiscard]] Image preview(std::uint32_t max_side = 0) const {
        return Image(detail::make<hart_image>(hart_event_preview, &event_, max_side));
    }

private:
    friend struct detail::Watcher;

    explicit Event(const hart_event &event) noexcept : event_(event) {}

    const hart_event &event_;
};

/// Hears a run's events, on the thread that called Model::generate, one call at a time, often: be quick.
using Observer = std::function<Control(const Event &)>;

/// Stops the runs of the requests that hold it.
class Cancel {
public:
    /// A token that has not been used.
    Cancel() : handle_(detail::make<hart_cancel>(hart_cancel_new)) {}

    /// Asks every run that holds the token to stop, also one that begins later. From any thread, in an observer, in a signal handler.
    void request() const noexcept { hart_cancel_request(get()); }
    /// Makes the token usable again.
    void reset() const { detail::check(hart_cancel_reset(get())); }
    /// Whether the token was used.
    [[nodiscard]] bool is_requested() const noexcept { return hart_cancel_is_requested(get()) != 0; }

    /// The C object, which stays this one's.
    [[nodiscard]] hart_cancel *get() const noexcept { return handle_.get(); }

private:
    detail::Handle<hart_cancel> handle_;
};

/* ---- Requests -------------------------------------------------------------- */

namespace detail {

/// An observer and what it has thrown, at a place that stays when the request moves.
struct Watcher {
    Observer observer;
    std::exception_ptr thrown;

    /// What C calls.
    static std::int32_t hear(const hart_event *event, void *user_data) noexcept {
        Watcher &watcher = *static_cast<Watcher *>(user_data);
        if (watcher.thrown) return 1;
        try {
            return watcher.observer(Event(*event)) == Control::go_on ? 0 : 1;
        } catch (const Error &error) {
            // Such as a preview's, if the run's token was used meanwhile. The run then says what was finished before.
            if (error.status() != Status::cancelled) watcher.thrown = std::current_exception();
        } catch (...) {
            watcher.thrown = std::current_exception();
        }
        return 1;
    }
};

/// Whatever hears events, as an Observer.
template <class F>
[[nodiscard]] Observer observer(F &&function) {
    using Answer = std::invoke_result_t<std::decay_t<F> &, const Event &>;
    static_assert(std::is_void_v<Answer> || std::is_same_v<Answer, Control>, "an observer returns hart::Control or nothing");
    if constexpr (std::is_void_v<Answer>) {
        return [function = std::decay_t<F>(std::forward<F>(function))](const Event &event) mutable {
            function(event);
            return Control::go_on;
        };
    } else {
        return Observer(std::forward<F>(function));
    }
}

template <class F>
using IsObserver = std::enable_if_t<std::is_invocable_v<std::decay_t<F> &, const Event &>, int>;

} // namespace detail

/// What to make: prompts and settings, who hears of it, what stops it. May be used again and again. Each setter is there twice: for a
/// request with a name, which it returns, and for one without, as in `hart::Request("a parrot").seed(7)`, which it hands on.
class Request {
public:
    /// A request without a prompt and with the model's own settings.
    Request() : handle_(detail::make<hart_request>(hart_request_new)) {}
    /// A request with one prompt and the model's own settings.
    explicit Request(const Text &prompt) : Request() { this->prompt(prompt); }

    /// One prompt, in place of those that were there.
    Request &prompt(const Text &prompt) & { return set(hart_request_set_prompt(get(), prompt.c_str())); }
    [[nodiscard]] Request prompt(const Text &prompt) && { return hand_on(this->prompt(prompt)); }

    /// One more prompt.
    Request &add_prompt(const Text &prompt) & { return set(hart_request_add_prompt(get(), prompt.c_str())); }
    [[nodiscard]] Request add_prompt(const Text &prompt) && { return hand_on(this->add_prompt(prompt)); }

    /// Pictures of each prompt; default 1. Picture i of a prompt, from 0, has the seed `seed + i`.
    Request &images_per_prompt(std::uint32_t count) & { return set(hart_request_set_images_per_prompt(get(), count)); }
    [[nodiscard]] Request images_per_prompt(std::uint32_t count) && { return hand_on(this->images_per_prompt(count)); }

    /// Seed of each prompt's first picture; default 0.
    Request &seed(std::uint64_t seed) & { return set(hart_request_set_seed(get(), seed)); }
    [[nodiscard]] Request seed(std::uint64_t seed) && { return hand_on(this->seed(seed)); }

    /// Strength of classifier-free guidance, -100 to 100, 0 is none; default the model's own, usually 4.5.
    Request &guidance(double guidance) & { return set(hart_request_set_guidance(get(), guidance)); }
    [[nodiscard]] Request guidance(double guidance) && { return hand_on(this->guidance(guidance)); }

    /// Whether a token is a mix of codes or one code; default the model's own, usually a mix.
    Request &soft_sampling(bool soft) & { return set(hart_request_set_soft_sampling(get(), soft ? 1 : 0)); }
    [[nodiscard]] Request soft_sampling(bool soft) && { return hand_on(this->soft_sampling(soft)); }

    /// Codes kept in drawing a token, at least 1; default the model's own, usually 600 on the first seven scales and 300 after.
    Request &top_k(std::uint32_t top_k) & { return set(hart_request_set_top_k(get(), top_k)); }
    [[nodiscard]] Request top_k(std::uint32_t top_k) && { return hand_on(this->top_k(top_k)); }

    /// Keeps the likeliest codes that together have this probability, 0 is off; default the model's own, usually 0.
    Request &top_p(double top_p) & { return set(hart_request_set_top_p(get(), top_p)); }
    [[nodiscard]] Request top_p(double top_p) && { return hand_on(this->top_p(top_p)); }

    /// Steps of the residual diffusion, such as "8", "10,5" or "ddim25"; default the model's own, usually "8".
    Request &steps(const Text &steps) & { return set(hart_request_set_steps(get(), steps.c_str())); }
    [[nodiscard]] Request steps(const Text &steps) && { return hand_on(this->steps(steps)); }

    /// Text that goes before the prompts; "" for none. Default the model's own.
    Request &system_prompt(const Text &prompt) & { return set(hart_request_set_system_prompt(get(), prompt.c_str())); }
    [[nodiscard]] Request system_prompt(const Text &prompt) && { return hand_on(this->system_prompt(prompt)); }

    /// The model's own system prompt again.
    Request &default_system_prompt() & { return set(hart_request_set_system_prompt(get(), nullptr)); }
    [[nodiscard]] Request default_system_prompt() && { return hand_on(this->default_system_prompt()); }

    /// Draws a part of a picture anew, where `mask` is white. Both have the model's width and height. The latent of the rest stays exactly as the
    /// picture's own. The coarsest `kept_scales` scales are kept everywhere, so that what was there shines through; 0 is none.
    Request &inpaint(const Image &image, const Image &mask, std::uint32_t kept_scales = 0) & {
        return set(hart_request_set_inpaint(get(), there(image), mask.get(), kept_scales));
    }
    [[nodiscard]] Request inpaint(const Image &image, const Image &mask, std::uint32_t kept_scales = 0) && {
        return hand_on(this->inpaint(image, mask, kept_scales));
    }

    /// Draws around a picture that is smaller than the model's, with its left top corner at (left, top) of the canvas.
    Request &outpaint(const Image &image, std::uint32_t left, std::uint32_t top) & {
        return set(hart_request_set_outpaint(get(), there(image), left, top));
    }
    [[nodiscard]] Request outpaint(const Image &image, std::uint32_t left, std::uint32_t top) && {
        return hand_on(this->outpaint(image, left, top));
    }

    /// Keeps a picture's coarsest `kept_scales` scales, 1 to all but the last, and draws the finer ones anew.
    Request &vary(const Image &image, std::uint32_t kept_scales) & {
        return set(hart_request_set_variation(get(), there(image), kept_scales));
    }
    [[nodiscard]] Request vary(const Image &image, std::uint32_t kept_scales) && { return hand_on(this->vary(image, kept_scales)); }

    /// Starts from no picture again.
    Request &from_nothing() & { return set(hart_request_set_variation(get(), nullptr, 0)); }
    [[nodiscard]] Request from_nothing() && { return hand_on(this->from_nothing()); }

    /// Who hears the events of its runs: an Observer, or anything else that takes a `const Event &` and returns Control or nothing. What
    /// it throws cancels the run, and generate() throws it. The request keeps the observer.
    template <class F, detail::IsObserver<F> = 0>
    Request &observer(F &&observer) & {
        return watch(detail::observer(std::forward<F>(observer)));
    }
    template <class F, detail::IsObserver<F> = 0>
    [[nodiscard]] Request observer(F &&observer) && {
        return hand_on(this->observer(std::forward<F>(observer)));
    }

    /// Nobody hears the events any more.
    Request &without_observer() & { return watch(nullptr); }
    [[nodiscard]] Request without_observer() && { return hand_on(this->without_observer()); }

    /// The token that stops its runs, which may be destroyed before the request.
    Request &cancel_token(const Cancel &cancel) & {
        // C takes no token as none, but one that was moved from is a mistake.
        if (cancel.get() == nullptr) throw Error(Status::null, "`cancel` was moved from");
        return set(hart_request_set_cancel(get(), cancel.get()));
    }
    [[nodiscard]] Request cancel_token(const Cancel &cancel) && { return hand_on(this->cancel_token(cancel)); }

    /// No token stops its runs any more.
    Request &without_cancel_token() & { return set(hart_request_set_cancel(get(), nullptr)); }
    [[nodiscard]] Request without_cancel_token() && { return hand_on(this->without_cancel_token()); }

    /// The C object, which stays this one's.
    [[nodiscard]] hart_request *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    Request &set(hart_status status) {
        detail::check(status);
        return *this;
    }

    /// C takes no image as none, but one that was moved from is a mistake.
    [[nodiscard]] static const hart_image *there(const Image &image) {
        if (image.get() == nullptr) throw Error(Status::null, "`image` was moved from");
        return image.get();
    }

    [[nodiscard]] static Request hand_on(Request &request) noexcept { return std::move(request); }

    Request &watch(Observer observer) {
        std::shared_ptr<detail::Watcher> watcher;
        if (observer) watcher = std::make_shared<detail::Watcher>(detail::Watcher{std::move(observer), nullptr});
        set(hart_request_set_observer(get(), watcher ? detail::Watcher::hear : nullptr, watcher.get()));
        watcher_ = std::move(watcher);
        return *this;
    }

    detail::Handle<hart_request> handle_;
    std::shared_ptr<detail::Watcher> watcher_;
};

/* ---- Results --------------------------------------------------------------- */

/// Seconds that a run spent in each stage.
struct Timings {
    /// Prompt to context.
    double text = 0.0;
    /// The transformer.
    double transformer = 0.0;
    /// Logits to codes, codes to the latent.
    double sampling = 0.0;
    /// The residual diffusion.
    double residual = 0.0;
    /// Latent to pixels.
    double decode = 0.0;
    /// The whole run.
    double total = 0.0;
};

/// A prompt that was longer than the model reads.
struct Truncation {
    /// Which prompt of the request, from 0; none is the system prompt.
    std::optional<std::size_t> prompt;
    /// Tokens of the whole text.
    std::uint32_t tokens = 0;
    /// Tokens that were read.
    std::uint32_t kept = 0;
    /// The text that was not read.
    std::string cut;
};

/// What a run made.
class Result {
public:
    /// How many pictures were finished: all of the first prompt, then all of the second, and so on.
    [[nodiscard]] std::size_t count() const noexcept { return hart_result_count(get()); }

    /// Picture `index`, from 0, as an image of its own, which shares the pixels.
    [[nodiscard]] Image image(std::size_t index) const { return Image(detail::make<hart_image>(hart_result_image, get(), index)); }

    /// All pictures.
    [[nodiscard]] std::vector<Image> images() const {
        std::vector<Image> all;
        all.reserve(count());
        for (std::size_t i = 0; i < count(); ++i) all.push_back(image(i));
        return all;
    }

    /// Where the time went; zeros after a cancelled run.
    [[nodiscard]] Timings timings() const {
        auto t = detail::sized<hart_timings>();
        detail::check(hart_result_timings(get(), &t));
        return {t.text, t.transformer, t.sampling, t.residual, t.decode, t.total};
    }

    /// The prompts, the system prompt included, that were cut because the model reads no more.
    [[nodiscard]] std::vector<Truncation> truncations() const {
        std::vector<Truncation> all(hart_result_truncation_count(get()));
        for (std::size_t i = 0; i < all.size(); ++i) {
            auto t = detail::sized<hart_truncation>();
            detail::check(hart_result_truncation(get(), i, &t));
            if (t.prompt >= 0) all[i].prompt = static_cast<std::size_t>(t.prompt);
            all[i].tokens = t.tokens;
            all[i].kept = t.kept;
            all[i].cut = t.cut;
        }
        return all;
    }

    /// The C object, which stays this one's.
    [[nodiscard]] hart_result *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    explicit Result(detail::Handle<hart_result> handle) noexcept : handle_(std::move(handle)) {}

    detail::Handle<hart_result> handle_;
};

/// The run was cancelled, which is no error of anybody's. Carries what was finished before.
class Cancelled : public Error {
public:
    /// What Model::generate throws.
    Cancelled(const std::string &message, Result result)
        : Error(Status::cancelled, message), result_(std::make_shared<const Result>(std::move(result))) {}

    /// The finished pictures; they may be kept.
    [[nodiscard]] std::vector<Image> images() const { return result_->images(); }
    /// What the run made until then. Valid as long as the exception.
    [[nodiscard]] const Result &result() const noexcept { return *result_; }

private:
    // Exceptions are copied.
    std::shared_ptr<const Result> result_;
};

/* ---- Models ---------------------------------------------------------------- */

/// How a model is opened; whatever is not set has a sane default. Each setter is there twice, as in Request.
class Options {
public:
    /// The defaults.
    Options() : handle_(detail::make<hart_options>(hart_options_new)) {}

    /// Where the model computes: "auto" (default), "cpu", or another name from devices().
    Options &device(const Text &device) & { return set(hart_options_set_device(get(), device.c_str())); }
    [[nodiscard]] Options device(const Text &device) && { return hand_on(this->device(device)); }

    /// The numbers that it computes with: "auto" (default), "f32", "bf16" or "int8" on the CPU, "f16" on a GPU.
    Options &precision(const Text &precision) & { return set(hart_options_set_precision(get(), precision.c_str())); }
    [[nodiscard]] Options precision(const Text &precision) && { return hand_on(this->precision(precision)); }

    /// Folder of the text model; default `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct` there or beside it.
    Options &text_model(const Path &path) & { return set(hart_options_set_text_model(get(), path.c_str())); }
    [[nodiscard]] Options text_model(const Path &path) && { return hand_on(this->text_model(path)); }

    /// Which weights: "auto" (default: EMA weights if there are some, else the plain ones), "ema" or "plain".
    Options &weights(const Text &weights) & { return set(hart_options_set_weights(get(), weights.c_str())); }
    [[nodiscard]] Options weights(const Text &weights) && { return hand_on(this->weights(weights)); }

    /// Whether safetensors files are mapped (default) or read into memory. Mapped files must not change while the model is open.
    Options &memory_map(bool memory_map) & { return set(hart_options_set_memory_map(get(), memory_map ? 1 : 0)); }
    [[nodiscard]] Options memory_map(bool memory_map) && { return hand_on(this->memory_map(memory_map)); }

    /// Whether tensors that nothing uses are an error (default) or overlooked.
    Options &strict(bool strict) & { return set(hart_options_set_strict(get(), strict ? 1 : 0)); }
    [[nodiscard]] Options strict(bool strict) && { return hand_on(this->strict(strict)); }

    /// How many threads of its own the model works on, 1 to 1024; 0 (default) shares one set of threads, as many as there are cores, with
    /// all models of the program. The picture is the same with any number.
    Options &threads(std::uint32_t threads) & { return set(hart_options_set_threads(get(), threads)); }
    [[nodiscard]] Options threads(std::uint32_t threads) && { return hand_on(this->threads(threads)); }

    /// Most bytes of memory that the model may be expected to take; 0 (default) is no limit. What is estimated to need more, opening it or
    /// a run, throws Status::memory before any work.
    Options &max_memory(std::uint64_t bytes) & { return set(hart_options_set_max_memory(get(), bytes)); }
    [[nodiscard]] Options max_memory(std::uint64_t bytes) && { return hand_on(this->max_memory(bytes)); }

    /// The C object, which stays this one's.
    [[nodiscard]] hart_options *get() const noexcept { return handle_.get(); }

private:
    Options &set(hart_status status) {
        detail::check(status);
        return *this;
    }

    [[nodiscard]] static Options hand_on(Options &options) noexcept { return std::move(options); }

    detail::Handle<hart_options> handle_;
};

/// Reads the bytes from `offset` of a file on into the whole of `buffer`; false if it can't. What it throws, Files::add_reader throws.
using Reader = std::function<bool(std::uint64_t offset, span<std::uint8_t> buffer)>;

/// A model's files in memory, each under the name that it would have below the model's folder, such as "llm/config.json".
class Files {
public:
    /// No files yet.
    Files() : handle_(detail::make<hart_files>(hart_files_new)) {}

    /// Adds a file whose contents are `size` bytes at `data`, which are copied.
    Files &add(const Text &name, const void *data, std::size_t size) {
        detail::check(hart_files_add(get(), name.c_str(), static_cast<const std::uint8_t *>(data), size));
        return *this;
    }

    /// Adds a file of `size` bytes, which are read through `reader` before this returns.
    Files &add_reader(const Text &name, std::uint64_t size, const Reader &reader) {
        if (!reader) throw Error(Status::null, "`reader` is empty");
        Reading reading{reader, nullptr};
        const hart_status status = hart_files_add_reader(get(), name.c_str(), size, Reading::read, &reading);
        if (reading.thrown) std::rethrow_exception(reading.thrown);
        detail::check(status);
        return *this;
    }

    /// The C object, which stays this one's.
    [[nodiscard]] hart_files *get() const noexcept { return handle_.get(); }

private:
    struct Reading {
        const Reader &reader;
        std::exception_ptr thrown;

        static std::int32_t read(void *user_data, std::uint64_t offset, std::uint8_t *buffer, std::size_t size) noexcept {
            Reading &reading = *static_cast<Reading *>(user_data);
            try {
                return reading.reader(offset, {buffer, size}) ? 0 : 1;
            } catch (...) {
                reading.thrown = std::current_exception();
                return 1;
            }
        }
    };

    detail::Handle<hart_files> handle_;
};

/// A picture as the model's tokens: codes scale by scale, and the residual that they lose. Keeps the model's weights in memory.
class Tokens {
public:
    /// How many scales there are, coarse to fine.
    [[nodiscard]] std::size_t scales() const noexcept { return hart_tokens_scales(get()); }

    /// The codes of scale `scale`, from 0: side * side numbers, row by row. Valid as long as the tokens.
    [[nodiscard]] span<const std::uint32_t> codes(std::size_t scale) const & {
        const std::uint32_t *data = nullptr;
        std::size_t count = 0;
        detail::check(hart_tokens_codes(get(), scale, &data, &count));
        return {data, count};
    }
    /// A temporary's codes would be gone at once: keep the tokens.
    span<const std::uint32_t> codes(std::size_t scale) const && = delete;

    /// The C object, which stays this one's.
    [[nodiscard]] hart_tokens *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    explicit Tokens(detail::Handle<hart_tokens> handle) noexcept : handle_(std::move(handle)) {}

    detail::Handle<hart_tokens> handle_;
};

/// What a model is.
struct ModelInfo {
    /// Pixels in a row of its pictures.
    std::uint32_t width = 0;
    /// Rows of its pictures.
    std::uint32_t height = 0;
    /// Scales of a picture, coarse to fine.
    std::uint32_t scales = 0;
    /// Tokens of a prompt that it reads.
    std::uint32_t context_tokens = 0;
    /// Codes that an image token is drawn from.
    std::uint32_t codes = 0;
    /// Parameters, text encoder and visual tokenizer included.
    std::uint64_t parameters = 0;
    /// Where it computes, such as "cpu".
    std::string device;
    /// The numbers that it computes with, such as "f32".
    std::string precision;
};

/// Bytes of memory that are expected to be needed. Every further run at the same time adds `peak - weights`.
struct Memory {
    /// What the model holds.
    std::uint64_t weights = 0;
    /// That, and what a run needs at its height.
    std::uint64_t peak = 0;
};

/// An opened model: weights that never change. Any number of threads may use it at once, each with a request of its own.
class Model {
public:
    /// Opens a model's folder, which holds `llm` and `tokenizer`.
    [[nodiscard]] static Model open(const Path &path) { return open(path, nullptr); }
    /// Opens a model's folder, which holds `llm` and `tokenizer`.
    [[nodiscard]] static Model open(const Path &path, const Options &options) { return open(path, options_of(options)); }

    /// Opens a model whose files are in memory; they may be destroyed afterwards.
    [[nodiscard]] static Model from_files(const Files &files) { return from_files(files, nullptr); }
    /// Opens a model whose files are in memory; they may be destroyed afterwards.
    [[nodiscard]] static Model from_files(const Files &files, const Options &options) { return from_files(files, options_of(options)); }

    /// The same model once more, for a part of the program that keeps its own. The weights are shared and go with the last.
    [[nodiscard]] Model share() const { return Model(detail::make<hart_model>(hart_model_share, get())); }

    /// Describes the model.
    [[nodiscard]] ModelInfo info() const {
        auto i = detail::sized<hart_model_info>();
        detail::check(hart_model_describe(get(), &i));
        return {i.width, i.height, i.scales, i.context_tokens, i.codes, i.parameters, i.device, i.precision};
    }

    /// Estimates the memory that a run of one picture needs, before anything is made.
    [[nodiscard]] Memory memory() const { return memory(nullptr); }
    /// Estimates the memory that a run of the request needs, before anything is made.
    [[nodiscard]] Memory memory(const Request &request) const { return memory(request_of(request)); }

    /// Makes a picture that nobody sees, so that the first one that counts doesn't wait for a GPU's kernels to be compiled.
    void warm_up() const { detail::check(hart_model_warm_up(get())); }

    /// Makes the request's pictures and returns when they are finished. Throws Cancelled if the run was cancelled, and what the observer
    /// has thrown.
    [[nodiscard]] Result generate(const Request &request) const {
        // Held here, since an observer may do away with its request.
        const std::shared_ptr<detail::Watcher> watcher = request.watcher_;
        hart_result *made = nullptr;
        const hart_status status = hart_generate(get(), request.get(), &made);
        Result result{detail::Handle<hart_result>(made)};
        // Status::state: the request is another run's, and so is its watcher.
        if (status != HART_ERR_STATE && watcher && watcher->thrown) {
            std::rethrow_exception(std::exchange(watcher->thrown, nullptr));
        }
        if (status == HART_CANCELLED) throw Cancelled(hart_last_error(), std::move(result));
        detail::check(status);
        return result;
    }

    /// A picture to tokens. It must have the model's width and height.
    [[nodiscard]] Tokens tokenize(const Image &image) const {
        return Tokens(detail::make<hart_tokens>(hart_model_tokenize, get(), image.get()));
    }

    /// This model's tokens to a picture: with the residual, which is all that the autoencoder can do, or from the codes alone.
    [[nodiscard]] Image reconstruct(const Tokens &tokens, bool with_residual = true) const {
        return Image(detail::make<hart_image>(hart_model_reconstruct, get(), tokens.get(), with_residual ? 1 : 0));
    }

    /// The C object, which stays this one's.
    [[nodiscard]] hart_model *get() const noexcept { return handle_.get(); }

private:
    explicit Model(detail::Handle<hart_model> handle) noexcept : handle_(std::move(handle)) {}

    [[nodiscard]] static Model open(const Path &path, const hart_options *options) {
        return Model(detail::make<hart_model>(hart_model_open, path.c_str(), options, std::uint32_t{HART_ABI_VERSION}));
    }

    [[nodiscard]] static Model from_files(const Files &files, const hart_options *options) {
        const hart_files *const all = files.get();
        return Model(detail::make<hart_model>(hart_model_open_files, all, options, std::uint32_t{HART_ABI_VERSION}));
    }

    [[nodiscard]] Memory memory(const hart_request *request) const {
        Memory memory;
        detail::check(hart_model_memory(get(), request, &memory.weights, &memory.peak));
        return memory;
    }

    // C takes NULL as the defaults, but an object that was moved from is a mistake.
    [[nodiscard]] static const hart_options *options_of(const Options &options) {
        if (options.get() == nullptr) throw Error(Status::null, "`options` was moved from");
        return options.get();
    }

    [[nodiscard]] static const hart_request *request_of(const Request &request) {
        if (request.get() == nullptr) throw Error(Status::null, "`request` was moved from");
        return request.get();
    }

    detail::Handle<hart_model> handle_;
};

} // inline namespace cxx17 or cxx20

} // namespace hart

#endif
