/* hart: text-to-image generation for C++17 and later. A thin layer over hart.h with RAII objects and exceptions.
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
 * Rules:
 *
 * Errors    A failure throws hart::Error, whose what() describes the cause and the remedy. A cancelled run throws
 *           hart::Cancelled. A program that is built without exceptions includes hart.h instead, which returns a status.
 * Objects   are moved, not copied. A moved-from object is empty: it may be destroyed or assigned to; most other calls
 *           throw an Error with Status::null.
 * Views     (spans and string_views) point into the object that returned them. They are valid until the object is
 *           destroyed, even if it is moved.
 * Strings   are UTF-8: std::string and similar types on every system, u8"" too. Paths may also be std::filesystem::path.
 * Callbacks may throw. The exception does not pass through hart: the work is cancelled, and generate() or open() rethrows it.
 * Threads   as in hart.h: any number of threads may use a Model, Cancel, Image, Result, Tokens or Context at once; the
 *           last four are immutable. One thread at a time may use a Request, Options or Files.
 *
 * Linking   as for hart.h: the hart library and nothing else.
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

// Classes that use span differ between C++17 and C++20, so each has its own inline namespace. Parts of a program that
// are compiled as C++17 and as C++20 can both use hart; passing such a class from one to the other is a link error.
#if defined(__cpp_lib_span)
inline namespace cxx20 {

/// A view of contiguous values that another object owns.
template <class T>
using span = std::span<T>;
#else
inline namespace cxx17 {

/// A view of contiguous values that another object owns: the part of C++20's std::span that hart needs.
template <class T>
class span {
public:
    /// Creates an empty span.
    constexpr span() noexcept = default;
    /// Creates a span of `size` values at `data`.
    constexpr span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    /// Creates a span of the values of a container, such as a std::vector or another span.
    template <class C, std::enable_if_t<std::is_convertible_v<decltype(std::declval<const C &>().data()), T *>, int> = 0>
    constexpr span(const C &values) noexcept : data_(values.data()), size_(values.size()) {}

    /// Returns a pointer to the first value.
    [[nodiscard]] constexpr T *data() const noexcept { return data_; }
    /// Returns the number of values.
    [[nodiscard]] constexpr std::size_t size() const noexcept { return size_; }
    /// Returns true if there are no values.
    [[nodiscard]] constexpr bool empty() const noexcept { return size_ == 0; }
    /// Returns a pointer to the first value.
    [[nodiscard]] constexpr T *begin() const noexcept { return data_; }
    /// Returns a pointer past the last value.
    [[nodiscard]] constexpr T *end() const noexcept { return data_ + size_; }
    /// Returns value `index`, which must be less than size().
    [[nodiscard]] constexpr T &operator[](std::size_t index) const { return data_[index]; }

private:
    T *data_ = nullptr;
    std::size_t size_ = 0;
};
#endif

/* ---- Errors ---------------------------------------------------------------- */

/// Outcome of a call. Later versions may add values: treat an unknown one as an error.
enum class Status : std::int32_t {
    /// The call succeeded.
    ok = HART_OK,
    /// The run, or opening the model, was cancelled. This is not an error.
    cancelled = HART_CANCELLED,
    /// An object is empty because it was moved from.
    null = HART_ERR_NULL,
    /// A string is not UTF-8.
    utf8 = HART_ERR_UTF8,
    /// An argument is invalid.
    argument = HART_ERR_ARGUMENT,
    /// The request can't be carried out.
    request = HART_ERR_REQUEST,
    /// The call is not allowed now: the request is running, the event has no preview, or the process was forked during a call or
    /// after its parent used a GPU.
    state = HART_ERR_STATE,
    /// The program was compiled for a newer ABI than the library has.
    abi = HART_ERR_ABI,
    /// The prompt filter refused the prompt. Prompt filters exist in Rust only, so C++ programs do not receive this status.
    refused = HART_ERR_REFUSED,
    /// A file or folder can't be read or written.
    io = HART_ERR_IO,
    /// A file of the checkpoint is missing or malformed.
    checkpoint = HART_ERR_CHECKPOINT,
    /// A value in a configuration file is invalid.
    config = HART_ERR_CONFIG,
    /// The tensors of the checkpoint do not match its configuration.
    weights = HART_ERR_WEIGHTS,
    /// A tensor of the checkpoint contains NaN or infinity.
    not_finite = HART_ERR_NOT_FINITE,
    /// An image file is malformed.
    image = HART_ERR_IMAGE,
    /// The device is not compiled in, not present, or has failed.
    device = HART_ERR_DEVICE,
    /// More memory is needed than is available, or than Options::max_memory allows.
    memory = HART_ERR_MEMORY,
    /// A run produced NaN or infinity.
    overflow = HART_ERR_OVERFLOW,
    /// The system does not start the threads that hart needs. The next call tries again.
    threads = HART_ERR_THREADS,
    /// hart panicked because of a defect in hart. The program can continue, but not with this model.
    panic = HART_ERR_PANIC,
    /// The model has panicked before. Open it again.
    poisoned = HART_ERR_POISONED,
    /// An error that has no constant in this version of the C API.
    other = HART_ERR_OTHER,
};

/// Returns a short English description of a status.
[[nodiscard]] inline const char *text(Status status) noexcept { return hart_status_text(static_cast<hart_status>(status)); }

/// An error. what() describes the cause, its location and the expected value.
class Error : public std::runtime_error {
public:
    /// Creates an error, for callbacks and tests.
    Error(Status status, const std::string &message) : std::runtime_error(message), status_(status) {}

    /// Returns the status of the failure.
    [[nodiscard]] Status status() const noexcept { return status_; }

private:
    Status status_;
};

namespace detail {

/// Throws the last error of this thread if the call failed.
inline void check(hart_status status) {
    if (status != HART_OK) throw Error(static_cast<Status>(status), hart_last_error());
}

struct Free {
    void operator()(hart_cancel *object) const noexcept { hart_cancel_free(object); }
    void operator()(hart_context *object) const noexcept { hart_context_free(object); }
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

/// Returns the object that a C function creates through its last parameter.
template <class T, class... Parameters, class... Arguments>
[[nodiscard]] Handle<T> make(hart_status (*function)(Parameters...), Arguments... arguments) {
    T *object = nullptr;
    check(function(arguments..., &object));
    return Handle<T>(object);
}

/// Returns a zeroed C struct with its struct_size set.
template <class T>
[[nodiscard]] T sized() noexcept {
    T value{};
    value.struct_size = sizeof(T);
    return value;
}

/// Returns the value of a setting that a C function writes, or nullopt if it is not set.
template <class T, class C>
[[nodiscard]] std::optional<T> setting(hart_status (*get)(const C *, T *, std::int32_t *), const C *object) {
    T value{};
    std::int32_t is_set = 0;
    check(get(object, &value, &is_set));
    return is_set != 0 ? std::optional<T>(value) : std::nullopt;
}

/// Like setting(), for a boolean.
template <class C>
[[nodiscard]] std::optional<bool> flag(hart_status (*get)(const C *, std::int32_t *, std::int32_t *), const C *object) {
    const auto value = setting(get, object);
    return value ? std::optional<bool>(*value != 0) : std::nullopt;
}

/// Like setting(), for a string.
template <class C>
[[nodiscard]] std::optional<std::string> text_setting(hart_status (*get)(const C *, const char **), const C *object) {
    const char *text = nullptr;
    check(get(object, &text));
    return text != nullptr ? std::optional<std::string>(text) : std::nullopt;
}

/// The hart_destroy of user data that is a T from `new`.
template <class T>
void destroy(void *user_data) noexcept {
    delete static_cast<T *>(user_data);
}

struct ObserverState;

} // namespace detail

/* ---- Strings --------------------------------------------------------------- */

/// A string that is passed to hart, in UTF-8: from "", u8"", std::string, std::string_view and similar types.
class Text {
public:
    /// Copies the string, which must not contain NUL.
    template <class T, std::enable_if_t<std::is_convertible_v<const T &, std::string_view>, int> = 0>
    Text(const T &text) : Text(std::string(view(text)), 0) {}
#if defined(__cpp_char8_t)
    /// Copies the string, which must not contain NUL.
    template <class T, std::enable_if_t<std::is_convertible_v<const T &, std::u8string_view>, int> = 0>
    Text(const T &text) : Text(from(static_cast<std::u8string_view>(text)), 0) {}
#endif

    /// Returns the string with a NUL at its end.
    [[nodiscard]] const char *c_str() const noexcept { return text_.c_str(); }

protected:
    /// Moves `text` into this object, or throws if it contains NUL.
    Text(std::string text, int) : text_(std::move(text)) {
        const auto nul = text_.find('\0');
        if (nul != std::string::npos) {
            throw Error(Status::argument, "a string contains NUL at byte " + std::to_string(nul) + ", which would end it there");
        }
    }

    /// Copies a string of char8_t or char to a std::string.
    template <class T>
    [[nodiscard]] static std::string from(const T &text) {
        return std::string(reinterpret_cast<const char *>(text.data()), text.size());
    }

private:
    [[nodiscard]] static std::string_view view(std::string_view text) noexcept { return text; }
    [[nodiscard]] static std::string_view view(const char *text) {
        if (text == nullptr) throw Error(Status::null, "a string is NULL");
        return text;
    }

    std::string text_;
};

/// A path that is passed to hart: a std::filesystem::path, or a string in UTF-8, on Windows too.
class Path : public Text {
public:
    using Text::Text;

    /// Converts a path to UTF-8.
    Path(const std::filesystem::path &path) : Text(from(path.u8string()), 0) {}
};

/* ---- The library ----------------------------------------------------------- */

/// Returns the version of the loaded library, such as "0.1.0".
[[nodiscard]] inline std::string_view version() noexcept { return hart_version_text(); }

/// Returns one line of JSON that describes the build of the loaded library: version, abi, backends (such as "cpu",
/// "cuda"), target and commit (or "unknown").
[[nodiscard]] inline std::string_view build_info() noexcept { return hart_build_info(); }

/// Severity of a message. Later versions may add values.
enum class LogLevel : std::int32_t {
    /// A panic: a failure inside hart or a library that it uses. The call in which it happened, if any, throws an error.
    error = HART_LOG_ERROR,
    /// A library that hart uses works differently than expected: it ignores a damaged cache, for example.
    warning = HART_LOG_WARNING,
};

/// Callback that receives a message, which is valid during the call. It is called on any thread, also on several at the same
/// time. It must not call functions of hart. Its exceptions are ignored.
using Logger = std::function<void(LogLevel level, std::string_view message)>;

/// Sets the callback that receives the messages of the whole library: the texts of panics, and warnings of the libraries that
/// hart uses. nullptr, the default, removes it; hart then prints nothing. When the call returns, the former callback has
/// returned and is no longer called.
inline void set_log(Logger logger) {
    if (!logger) {
        detail::check(hart_set_log(nullptr, nullptr, nullptr));
        return;
    }
    const auto log = [](hart_log_level level, const char *message, void *user_data) noexcept {
        try {
            (*static_cast<Logger *>(user_data))(static_cast<LogLevel>(level), message);
        } catch (...) {
            // There is no caller to whom it could be rethrown.
        }
    };
    detail::check(hart_set_log(log, new Logger(std::move(logger)), detail::destroy<Logger>));
}

/// A device on which a model can be opened.
struct Device {
    /// Name for Options::device.
    std::string name;
    /// Human-readable description.
    std::string description;
};

/// Returns the devices that are compiled in and present, the best first.
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

/// Format of an image file.
enum class Format : std::int32_t {
    /// PNG, without loss.
    png = HART_FORMAT_PNG,
    /// JPEG, with loss.
    jpeg = HART_FORMAT_JPEG,
    /// WebP, without loss.
    webp = HART_FORMAT_WEBP,
};

/// Bytes of a pixel, 8 bits for each channel, in the order of memory.
enum class PixelFormat : std::int32_t {
    /// Red, green, blue: the format of Image::pixels().
    rgb = HART_PIXEL_RGB,
    /// Blue, green, red.
    bgr = HART_PIXEL_BGR,
    /// Red, green, blue, alpha. The colours are not multiplied by alpha.
    rgba = HART_PIXEL_RGBA,
    /// Blue, green, red, alpha. The colours are not multiplied by alpha.
    bgra = HART_PIXEL_BGRA,
    /// Grey, one byte: the luma of ITU-R BT.601, as in JPEG.
    grey = HART_PIXEL_GREY,
};

/// Returns the bytes of a pixel.
[[nodiscard]] constexpr std::size_t bytes_per_pixel(PixelFormat format) noexcept {
    return format == PixelFormat::grey ? 1 : format == PixelFormat::rgb || format == PixelFormat::bgr ? 3 : 4;
}

/// An image with 8-bit RGB pixels. It never changes, and it may outlive the result and the model that it came from.
class Image {
public:
    /// Creates an image from pixels, which are copied: rows from the top, each of `width` pixels with 3 bytes for red,
    /// green and blue. `stride` is the distance between the starts of two rows in bytes; 0 stands for rows without padding,
    /// and `pixels` must then have exactly the size of the image.
    [[nodiscard]] static Image from_pixels(
        std::uint32_t width, std::uint32_t height, span<const std::uint8_t> pixels, std::size_t stride = 0) {
        return from_pixels(PixelFormat::rgb, width, height, pixels, stride);
    }

    /// Creates an image from pixels in any format. Transparent pixels are composited over white, as open() does.
    [[nodiscard]] static Image from_pixels(PixelFormat format,
                                           std::uint32_t width,
                                           std::uint32_t height,
                                           span<const std::uint8_t> pixels,
                                           std::size_t stride = 0) {
        const auto number = static_cast<hart_pixel_format>(format);
        return Image(
            detail::make<hart_image>(hart_image_new_from_pixels, number, width, height, stride, pixels.data(), pixels.size()));
    }

    /// Reads a PNG, JPEG or WebP file of any colour type, whatever its name. Turns the image upright according to its EXIF
    /// orientation and composites transparent pixels over white. In a mask, transparent pixels count as black. Also reads
    /// prompt, seed and settings from a file that hart wrote.
    [[nodiscard]] static Image open(const Path &path) { return Image(detail::make<hart_image>(hart_image_open, path.c_str())); }

    /// Reads an image file in memory, like open().
    [[nodiscard]] static Image decode(span<const std::uint8_t> file) {
        return Image(detail::make<hart_image>(hart_image_open_memory, file.data(), file.size()));
    }

    /// Arranges images of equal size in a grid with `columns` columns.
    [[nodiscard]] static Image grid(span<const Image> images, std::size_t columns) {
        std::vector<const hart_image *> all;
        all.reserve(images.size() + 1); // Never empty, so data() is not NULL.
        for (const Image &image : images) all.push_back(image.get());
        const hart_image *const *first = all.data();
        return Image(detail::make<hart_image>(hart_image_grid, first, all.size(), columns));
    }

    /// Returns an image that is white where this one is transparent and black where it is opaque: the mask for inpaint()
    /// if the transparent part is to be regenerated, as in OpenAI's image API. Only PNG and WebP files have
    /// transparent pixels.
    [[nodiscard]] Image transparency() const { return Image(detail::make<hart_image>(hart_image_transparency, get())); }

    /// Returns another object of the same image, without a copy of the pixels.
    [[nodiscard]] Image share() const { return Image(detail::make<hart_image>(hart_image_share, get())); }

    /// Moves the image. The other one is empty afterwards.
    Image(Image &&other) noexcept : handle_(std::move(other.handle_)), view_(std::exchange(other.view_, {})) {}
    /// Moves the image. The other one is empty afterwards.
    Image &operator=(Image &&other) noexcept {
        handle_ = std::move(other.handle_);
        view_ = std::exchange(other.view_, {});
        return *this;
    }

    /// Returns the width in pixels.
    [[nodiscard]] std::uint32_t width() const noexcept { return view_.width; }
    /// Returns the height in pixels.
    [[nodiscard]] std::uint32_t height() const noexcept { return view_.height; }
    /// Returns the bytes from the start of one row to the start of the next.
    [[nodiscard]] std::size_t stride() const noexcept { return view_.stride; }

    /// Returns the pixels row by row from the top left, 3 bytes each for red, green and blue. Valid as long as the
    /// image.
    [[nodiscard]] span<const std::uint8_t> pixels() const & noexcept { return {view_.pixels, view_.size}; }
    /// The pixels of a temporary would dangle: keep the image.
    span<const std::uint8_t> pixels() const && = delete;

    /// Returns a copy of the pixels in any format, without padding between the rows. Alpha is 255.
    [[nodiscard]] std::vector<std::uint8_t> pixels(PixelFormat format) const {
        std::vector<std::uint8_t> buffer(bytes_per_pixel(format) * width() * height());
        copy_pixels(format, {buffer.data(), buffer.size()});
        return buffer;
    }

    /// Writes the pixels in any format to a buffer, with a stride as in from_pixels(). Bytes between the rows are left
    /// unchanged. Alpha is 255, since transparent pixels have been composited over white.
    void copy_pixels(PixelFormat format, span<std::uint8_t> buffer, std::size_t stride = 0) const {
        const auto number = static_cast<hart_pixel_format>(format);
        detail::check(hart_image_copy_pixels(get(), number, stride, buffer.data(), buffer.size()));
    }

    /// Returns the prompt, if the image was generated. Valid as long as the image.
    [[nodiscard]] std::optional<std::string_view> prompt() const & noexcept { return optional(view_.prompt); }
    /// The prompt of a temporary would dangle: keep the image.
    std::optional<std::string_view> prompt() const && = delete;

    /// Returns the other settings in one line, if the image was generated. Valid as long as the image.
    [[nodiscard]] std::optional<std::string_view> settings() const & noexcept { return optional(view_.settings); }
    /// The settings of a temporary would dangle: keep the image.
    std::optional<std::string_view> settings() const && = delete;

    /// Returns the fingerprint of the model that generated the image, if it is known: that of ModelInfo. Valid as long as the
    /// image.
    [[nodiscard]] std::optional<std::string_view> model_fingerprint() const & noexcept {
        return optional(view_.model_fingerprint);
    }
    /// The fingerprint of a temporary would dangle: keep the image.
    std::optional<std::string_view> model_fingerprint() const && = delete;

    /// Returns the seed, if the image was generated.
    [[nodiscard]] std::optional<std::uint64_t> seed() const noexcept {
        return view_.prompt == nullptr ? std::nullopt : std::optional<std::uint64_t>(view_.seed);
    }

    /// Writes an image file in the format that its ending stands for, in upper or lower case: `.png`, `.jpg` or `.jpeg` with
    /// a quality of 90, or `.webp` without loss. The file is marked with prompt, seed and settings, and as generated by
    /// AI, unless `Request::marks` has left a mark out. The file is written completely or not at all. One that exists keeps its mode and, if
    /// possible, its owner; a symbolic link is followed.
    void save(const Path &path) const { detail::check(hart_image_save(get(), path.c_str())); }

    /// Returns the bytes of the image as a file. `quality` is that of JPEG files, 1 to 100, or 0 for 90. Valid as long as
    /// the image; the same call returns the same bytes.
    [[nodiscard]] span<const std::uint8_t> encode(Format format, std::uint32_t quality = 0) const & {
        const std::uint8_t *data = nullptr;
        std::size_t size = 0;
        detail::check(hart_image_encode(get(), static_cast<hart_image_format>(format), quality, &data, &size));
        return {data, size};
    }
    /// The bytes of a temporary would dangle: keep the image.
    span<const std::uint8_t> encode(Format format, std::uint32_t quality = 0) const && = delete;

    /// Returns the bytes of the PNG file that save() writes. Valid as long as the image.
    [[nodiscard]] span<const std::uint8_t> png() const & {
        const std::uint8_t *data = nullptr;
        std::size_t size = 0;
        detail::check(hart_image_png(get(), &data, &size));
        return {data, size};
    }
    /// The bytes of a temporary would dangle: keep the image.
    span<const std::uint8_t> png() const && = delete;

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_image *get() const noexcept { return handle_.get(); }

private:
    friend class Event;
    friend class Model;
    friend class Request;
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

/* ---- Events and cancellation ----------------------------------------------- */

/// Return value of an observer.
enum class Control {
    /// Continues the run.
    go_on,
    /// Stops the work as soon as possible; generate() or open() then throws Cancelled.
    cancel,
};

/// Stages of a run, in the order in which a prompt passes through them. In events of opening a model, the stage whose weights
/// are loaded.
enum class Stage : std::int32_t {
    /// The text encoder: prompt to context.
    text = HART_STAGE_TEXT,
    /// The transformer, scale by scale.
    transformer = HART_STAGE_TRANSFORMER,
    /// Sampling: logits to codes, codes to the latent.
    sampling = HART_STAGE_SAMPLING,
    /// The residual diffusion of the last scale.
    residual = HART_STAGE_RESIDUAL,
    /// The visual decoder: latent to pixels. Encoding an image to start from also counts as this stage.
    decode = HART_STAGE_DECODE,
    /// A stage that has no constant in this version of the C API.
    other = HART_STAGE_OTHER,
};

/// Returns the name of a stage in lower case.
[[nodiscard]] inline const char *text(Stage stage) noexcept {
    switch (stage) {
    case Stage::text: return "text";
    case Stage::transformer: return "transformer";
    case Stage::sampling: return "sampling";
    case Stage::residual: return "residual";
    case Stage::decode: return "decode";
    case Stage::other: break;
    }
    return "other";
}

/// Step that a run has completed or begun.
enum class Step : std::int32_t {
    /// index() of count() layers of the text encoder are done.
    text_layer = HART_STEP_TEXT_LAYER,
    /// Scale index() of count() begins.
    scale = HART_STEP_SCALE,
    /// index() of count() transformer blocks of the scale are done.
    block = HART_STEP_BLOCK,
    /// Scale index() of count() is done. The event has a preview.
    scale_done = HART_STEP_SCALE_DONE,
    /// index() of count() steps of the residual diffusion are done.
    diffusion = HART_STEP_DIFFUSION,
    /// index() of count() blocks of the decoder are done.
    decoder = HART_STEP_DECODER,
    /// index() of count() images are finished. The preview is the latest of them.
    images = HART_STEP_IMAGES,
    /// index() of count() tensors of the model are loaded. Only events of opening a model have this step.
    tensor = HART_STEP_TENSOR,
    /// A step that has no constant in this version of the C API.
    other = HART_STEP_OTHER,
};

/// An event of a run, or of opening a model. It is valid only during the call of the observer and can't be copied. A preview
/// may outlive it.
class Event {
public:
    Event(const Event &) = delete;
    Event &operator=(const Event &) = delete;

    /// Returns the stage.
    [[nodiscard]] Stage stage() const noexcept { return static_cast<Stage>(event_.stage); }
    /// Returns the step.
    [[nodiscard]] Step step() const noexcept { return static_cast<Step>(event_.step); }
    /// Returns the number of the step, from 1 to count(); 0 for Step::other.
    [[nodiscard]] std::uint32_t index() const noexcept { return event_.index; }
    /// Returns the total number of steps of this kind; 0 for Step::other.
    [[nodiscard]] std::uint32_t count() const noexcept { return event_.count; }
    /// Returns the current scale k, from 1; 0 before the first scale of an image.
    [[nodiscard]] std::uint32_t scale() const noexcept { return event_.scale; }
    /// Returns the number of scales S; 0 before the first scale of an image.
    [[nodiscard]] std::uint32_t scales() const noexcept { return event_.scales; }
    /// Returns the side of the current scale in latent positions; 0 before the first scale of an image.
    [[nodiscard]] std::uint32_t side() const noexcept { return event_.side; }
    /// Returns the estimated fraction of the whole work that is done, 0 to 1. Never decreases.
    [[nodiscard]] float fraction() const noexcept { return event_.fraction; }
    /// Returns the seconds since the work began.
    [[nodiscard]] double elapsed() const noexcept { return event_.elapsed; }
    /// Returns the index of the image that the event is about, from 0 in the order of the result. Events of images that are
    /// generated at once alternate. A prompt is encoded for the first of its images; 0 when a model is opened.
    [[nodiscard]] std::uint32_t image_index() const noexcept { return event_.image_index; }
    /// Returns true if preview() returns an image.
    [[nodiscard]] bool has_preview() const noexcept { return event_.has_preview != 0; }

    /// Decodes the current state of the run to an image. Its sides have at most `max_side` pixels, but at least those
    /// of one latent position (16 in published models); 0 stands for the full size. Small previews are cheap, and
    /// previews do not change the final image.
    [[nodiscard]] Image preview(std::uint32_t max_side = 0) const {
        return Image(detail::make<hart_image>(hart_event_preview, &event_, max_side));
    }

private:
    friend struct detail::ObserverState;

    explicit Event(const hart_event &event) noexcept : event_(event) {}

    const hart_event &event_;
};

/// Callback that receives the events of a run, or of opening a model. It is called often, one call at a time, on the thread
/// that called Model::generate, Model::encode or Model::open, so it should be fast.
using Observer = std::function<Control(const Event &)>;

/// A token that cancels the runs of all requests that hold it.
class Cancel {
public:
    /// Creates a token that is not cancelled.
    Cancel() : handle_(detail::make<hart_cancel>(hart_cancel_new)) {}

    /// Returns another object of the same token.
    [[nodiscard]] Cancel share() const { return Cancel(detail::make<hart_cancel>(hart_cancel_share, get())); }

    /// Cancels every run of a request that holds the token, including runs that start later. May be called from any
    /// thread, in an observer and in a signal handler.
    void request() const noexcept { hart_cancel_request(get()); }
    /// Resets the token so that it can be used again.
    void reset() const { detail::check(hart_cancel_reset(get())); }
    /// Returns true if the token is cancelled.
    [[nodiscard]] bool is_requested() const noexcept { return hart_cancel_is_requested(get()) != 0; }

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_cancel *get() const noexcept { return handle_.get(); }

private:
    friend class Options;
    friend class Request;

    explicit Cancel(detail::Handle<hart_cancel> handle) noexcept : handle_(std::move(handle)) {}

    /// Returns another object of the token that a C function returns, or nullopt if there is none.
    template <class C>
    [[nodiscard]] static std::optional<Cancel> of(hart_status (*get)(const C *, hart_cancel **), const C *object) {
        auto handle = detail::make<hart_cancel>(get, object);
        return handle ? std::optional<Cancel>(Cancel(std::move(handle))) : std::nullopt;
    }

    detail::Handle<hart_cancel> handle_;
};

/* ---- Contexts -------------------------------------------------------------- */

/// Hidden states of the text encoder for one prompt, after its final norm.
struct HiddenStates {
    /// tokens * channels values, token by token. They belong to the context.
    span<const float> values;
    /// Number of tokens, including padding.
    std::size_t tokens = 0;
    /// Number of channels.
    std::size_t channels = 0;
};

/// Encoded prompts, from Model::encode, for any number of requests with the same prompts. Does not keep the model in
/// memory.
class Context {
public:
    /// Returns another object of the same context.
    [[nodiscard]] Context share() const { return Context(detail::make<hart_context>(hart_context_share, get())); }

    /// Returns the number of prompts.
    [[nodiscard]] std::size_t count() const noexcept { return hart_context_count(get()); }

    /// Returns the number of bytes that the context takes in the memory of the program and of the device.
    [[nodiscard]] std::uint64_t bytes() const noexcept { return hart_context_bytes(get()); }

    /// Returns the hidden states of prompt `index`, counted from 0, without those of the system prompt. Padding has
    /// hidden states too. Valid as long as the context.
    [[nodiscard]] HiddenStates hidden(std::size_t index) const & {
        const float *values = nullptr;
        std::size_t tokens = 0, channels = 0;
        detail::check(hart_context_hidden(get(), index, &values, &tokens, &channels));
        return {{values, tokens * channels}, tokens, channels};
    }
    /// The hidden states of a temporary would dangle: keep the context.
    HiddenStates hidden(std::size_t index) const && = delete;

    /// Returns the mask of prompt `index`, counted from 0: 1 for a token of the text, 0 for padding. Valid as long as
    /// the context.
    [[nodiscard]] span<const std::uint8_t> mask(std::size_t index) const & {
        const std::uint8_t *values = nullptr;
        std::size_t tokens = 0;
        detail::check(hart_context_mask(get(), index, &values, &tokens));
        return {values, tokens};
    }
    /// The mask of a temporary would dangle: keep the context.
    span<const std::uint8_t> mask(std::size_t index) const && = delete;

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_context *get() const noexcept { return handle_.get(); }

private:
    friend class Model;
    friend class Request;

    explicit Context(detail::Handle<hart_context> handle) noexcept : handle_(std::move(handle)) {}

    detail::Handle<hart_context> handle_;
};

/* ---- Requests -------------------------------------------------------------- */

namespace detail {

/// An observer and the exception that it has thrown. Its address stays the same when the request is moved.
struct ObserverState {
    Observer observer;
    std::exception_ptr thrown;

    /// Sets an observer through a C function. hart keeps a reference to it as its user data.
    template <class C>
    [[nodiscard]] static std::shared_ptr<ObserverState> set(
        hart_status (*function)(C *, hart_observer, void *, hart_destroy), C *object, Observer observer) {
        if (!observer) {
            check(function(object, nullptr, nullptr, nullptr));
            return nullptr;
        }
        auto state = std::make_shared<ObserverState>(ObserverState{std::move(observer), nullptr});
        check(function(object, on_event, new Shared(state), destroy<Shared>));
        return state;
    }

    /// Rethrows the exception that the observer has thrown, if there is one.
    static void rethrow(const std::shared_ptr<ObserverState> &state) {
        if (state && state->thrown) std::rethrow_exception(std::exchange(state->thrown, nullptr));
    }

private:
    using Shared = std::shared_ptr<ObserverState>;

    /// The C callback.
    static std::int32_t on_event(const hart_event *event, void *user_data) noexcept {
        ObserverState &state = **static_cast<Shared *>(user_data);
        if (state.thrown) return 1;
        try {
            return state.observer(Event(*event)) == Control::go_on ? 0 : 1;
        } catch (const Error &error) {
            // A preview throws Status::cancelled if the token is used meanwhile. generate() then throws Cancelled with
            // the images that were finished before.
            if (error.status() != Status::cancelled) state.thrown = std::current_exception();
        } catch (...) {
            state.thrown = std::current_exception();
        }
        return 1;
    }
};

/// Converts a function that receives events to an Observer.
template <class F>
[[nodiscard]] Observer observer(F &&function) {
    using Returned = std::invoke_result_t<std::decay_t<F> &, const Event &>;
    static_assert(std::is_void_v<Returned> || std::is_same_v<Returned, Control>, "an observer returns hart::Control or nothing");
    if constexpr (std::is_void_v<Returned>) {
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

/// The part of an image that an edit keeps outside the region it regenerates.
enum class Keep : std::int32_t {
    /// The pixels are exactly those of the image. A soft edge within the regenerated region, 1/64 of the model's width,
    /// blends into the generated pixels.
    pixels = HART_KEEP_PIXELS,
    /// The latent of patches without a regenerated pixel is exactly that of the image. The decoder computes every pixel
    /// from the whole latent, so pixels outside the region change too, especially near it.
    latent = HART_KEEP_LATENT,
};

/// An image of which a region is regenerated.
struct Inpainting {
    /// The image.
    Image image;
    /// White where the image is regenerated.
    Image mask;
    /// Number of scales that are kept everywhere.
    std::uint32_t kept_scales = 0;
};

/// An image of which the surroundings are generated.
struct Outpainting {
    /// The image.
    Image image;
    /// Distance of its left edge from that of the new image, in pixels.
    std::uint32_t left = 0;
    /// Distance of its top edge from that of the new image, in pixels.
    std::uint32_t top = 0;
};

/// An image of which a variation is generated.
struct Variation {
    /// The image.
    Image image;
    /// Number of scales that are kept.
    std::uint32_t kept_scales = 0;
};

/// A request: prompts, settings, an observer and a cancel token. It may be used for any number of runs. Each setter has
/// two overloads: one returns a reference to an lvalue, the other returns a moved temporary, as in
/// `hart::Request("a parrot").seed(7)`. A function of the same name without a parameter returns what was set.
class Request {
public:
    /// Creates a request without prompts and with the default settings of the model.
    Request() : handle_(detail::make<hart_request>(hart_request_new)) {}
    /// Creates a request with one prompt and the default settings of the model.
    explicit Request(const Text &prompt) : Request() { this->prompt(prompt); }

    /// Returns the request that generated an image, from the settings in its file. The image is the same to the last bit
    /// with the same model in the same precision on the same kind of device. The prompt is missing if it was left out of
    /// the file: add it. Throws if the image has no settings or not all of them, or is an edit of another image.
    [[nodiscard]] static Request again(const Image &image) {
        return Request(detail::make<hart_request>(hart_request_again, required(image)));
    }

    /// Returns an independent copy: with the same prompts, settings, context and images, the same token, and a copy of the
    /// observer.
    [[nodiscard]] Request clone() const {
        Request copy(detail::make<hart_request>(hart_request_clone, get()));
        // Each request keeps the exceptions of its own runs.
        if (state_) copy.watch(state_->observer);
        return copy;
    }

    /// Sets the only prompt and removes all others.
    Request &prompt(const Text &prompt) & { return set(hart_request_set_prompt(get(), prompt.c_str())); }
    [[nodiscard]] Request prompt(const Text &prompt) && { return moved(this->prompt(prompt)); }

    /// Adds a prompt.
    Request &add_prompt(const Text &prompt) & { return set(hart_request_add_prompt(get(), prompt.c_str())); }
    [[nodiscard]] Request add_prompt(const Text &prompt) && { return moved(this->add_prompt(prompt)); }

    /// Sets the number of images of each prompt; the default is 1. Image i of a prompt, counted from 0, has the seed
    /// `seed + i`.
    Request &images_per_prompt(std::uint32_t count) & { return set(hart_request_set_images_per_prompt(get(), count)); }
    [[nodiscard]] Request images_per_prompt(std::uint32_t count) && { return moved(this->images_per_prompt(count)); }

    /// Sets the seed of the first image of each prompt; the default is 0.
    Request &seed(std::uint64_t seed) & { return set(hart_request_set_seed(get(), seed)); }
    [[nodiscard]] Request seed(std::uint64_t seed) && { return moved(this->seed(seed)); }

    /// Sets the strength of classifier-free guidance, from -100 to 100. 0 is no guidance; the default is the model's,
    /// usually 4.5.
    Request &guidance(double guidance) & { return set(hart_request_set_guidance(get(), guidance)); }
    [[nodiscard]] Request guidance(double guidance) && { return moved(this->guidance(guidance)); }

    /// Sets the marks that the files of the images get: names of "prompt", "parameters", "settings" and "source" with
    /// commas, "all" (the default) or "none". "parameters,settings,source" keeps the prompt out of the files.
    Request &marks(const Text &names) & { return set(hart_request_set_marks(get(), names.c_str())); }
    [[nodiscard]] Request marks(const Text &names) && { return moved(this->marks(names)); }

    /// Sets Gumbel-softmax smoothing: whether the embedding of a token is a weighted mix of codes or a single code. The
    /// default is the model's, usually a mix.
    Request &smoothing(bool smoothing) & { return set(hart_request_set_smoothing(get(), smoothing ? 1 : 0)); }
    [[nodiscard]] Request smoothing(bool smoothing) && { return moved(this->smoothing(smoothing)); }

    /// Sets how many of the most likely codes a token is sampled from, at least 1. The default is the model's, usually
    /// 600 on the first seven scales and 300 on the others.
    Request &top_k(std::uint32_t top_k) & { return set(hart_request_set_top_k(get(), top_k)); }
    [[nodiscard]] Request top_k(std::uint32_t top_k) && { return moved(this->top_k(top_k)); }

    /// Sets top-p sampling: a token is sampled from the most likely codes that together have this probability, from 0
    /// to 1. 0 turns it off; the default is the model's, usually 0.
    Request &top_p(double top_p) & { return set(hart_request_set_top_p(get(), top_p)); }
    [[nodiscard]] Request top_p(double top_p) && { return moved(this->top_p(top_p)); }

    /// Sets the steps of the residual diffusion, such as "8", "10,5" or "ddim25". The default is the model's, usually
    /// "8".
    Request &steps(const Text &steps) & { return set(hart_request_set_steps(get(), steps.c_str())); }
    [[nodiscard]] Request steps(const Text &steps) && { return moved(this->steps(steps)); }

    /// Sets the shares of tokens that the transformer leaves out of its last scales, coarse to fine, each from 0 to less
    /// than 1: "0.5,0.75" is the published plan. This is faster and needs less memory, but changes the images. By default,
    /// all tokens are computed.
    Request &prune(const Text &ratios) & { return set(hart_request_set_prune(get(), ratios.c_str())); }
    [[nodiscard]] Request prune(const Text &ratios) && { return moved(this->prune(ratios)); }

    /// Computes all tokens of all scales.
    Request &without_pruning() & { return set(hart_request_set_prune(get(), nullptr)); }
    [[nodiscard]] Request without_pruning() && { return moved(this->without_pruning()); }

    /// Sets the text before each prompt. "" is no text; the default is the model's own text.
    Request &system_prompt(const Text &prompt) & { return set(hart_request_set_system_prompt(get(), prompt.c_str())); }
    [[nodiscard]] Request system_prompt(const Text &prompt) && { return moved(this->system_prompt(prompt)); }

    /// Resets the system prompt to that of the model.
    Request &default_system_prompt() & { return set(hart_request_set_system_prompt(get(), nullptr)); }
    [[nodiscard]] Request default_system_prompt() && { return moved(this->default_system_prompt()); }

    /// Sets encoded prompts, so that runs skip the text encoder. The images are the same, to the last bit. This replaces
    /// the prompts and the system prompt by those of the context; setting other ones later throws Status::request. Only
    /// the model that encoded the context, and objects that share it, can run the request. The context may be destroyed
    /// before the request.
    Request &context(const Context &context) & {
        // C accepts NULL to remove the context, but a moved-from context is a mistake.
        if (context.get() == nullptr) throw Error(Status::null, "`context` was moved from");
        return set(hart_request_set_context(get(), context.get()));
    }
    [[nodiscard]] Request context(const Context &context) && { return moved(this->context(context)); }

    /// Removes the context and keeps its prompts and its system prompt.
    Request &without_context() & { return set(hart_request_set_context(get(), nullptr)); }
    [[nodiscard]] Request without_context() && { return moved(this->without_context()); }

    /// Sets inpainting: regenerates the region of `image` where `mask` is white. A pixel of the mask is white if the
    /// mean of its channels times its alpha is at least half of the maximum, so white on a transparent layer works as a
    /// mask. For a mask whose transparent part is regenerated, pass its transparency(). The image must have the width
    /// and height of the model. The mask must have the same proportions, at any resolution. All other pixels stay
    /// exactly the same, unless keep() says otherwise. The coarsest `kept_scales` scales are kept everywhere, so that
    /// the new content follows the layout of the old one; 0 keeps none.
    Request &inpaint(const Image &image, const Image &mask, std::uint32_t kept_scales = 0) & {
        return set(hart_request_set_inpaint(get(), required(image), mask.get(), kept_scales));
    }
    [[nodiscard]] Request inpaint(const Image &image, const Image &mask, std::uint32_t kept_scales = 0) && {
        return moved(this->inpaint(image, mask, kept_scales));
    }

    /// Sets outpainting: generates the surroundings of an image that is smaller than the model's images. Its top left
    /// corner is at (left, top) of the new image, in pixels. The pixels of the given image stay exactly the same,
    /// unless keep() says otherwise.
    Request &outpaint(const Image &image, std::uint32_t left, std::uint32_t top) & {
        return set(hart_request_set_outpaint(get(), required(image), left, top));
    }
    [[nodiscard]] Request outpaint(const Image &image, std::uint32_t left, std::uint32_t top) && {
        return moved(this->outpaint(image, left, top));
    }

    /// Sets a variation: keeps the coarsest `kept_scales` scales of an image, from 1 to all but the last, and
    /// regenerates the finer ones.
    Request &vary(const Image &image, std::uint32_t kept_scales) & {
        return set(hart_request_set_variation(get(), required(image), kept_scales));
    }
    [[nodiscard]] Request vary(const Image &image, std::uint32_t kept_scales) && { return moved(this->vary(image, kept_scales)); }

    /// Sets what inpaint() and outpaint() keep outside the region that they regenerate. Defaults to Keep::pixels.
    Request &keep(Keep keep) & { return set(hart_request_set_keep(get(), static_cast<hart_keep>(keep))); }
    [[nodiscard]] Request keep(Keep keep) && { return moved(this->keep(keep)); }

    /// Removes the image that inpaint(), outpaint() or vary() has set.
    Request &without_image() & { return set(hart_request_set_variation(get(), nullptr, 0)); }
    [[nodiscard]] Request without_image() && { return moved(this->without_image()); }

    /// Sets the observer of the runs: an Observer, or any other function that takes a `const Event &` and returns
    /// Control or nothing. If it throws, the run is cancelled and generate() rethrows the exception. The request keeps
    /// the observer.
    template <class F, detail::IsObserver<F> = 0>
    Request &observer(F &&observer) & {
        return watch(detail::observer(std::forward<F>(observer)));
    }
    template <class F, detail::IsObserver<F> = 0>
    [[nodiscard]] Request observer(F &&observer) && {
        return moved(this->observer(std::forward<F>(observer)));
    }

    /// Removes the observer.
    Request &without_observer() & { return watch(nullptr); }
    [[nodiscard]] Request without_observer() && { return moved(this->without_observer()); }

    /// Sets the token that cancels the runs. It may be destroyed before the request.
    Request &cancel_token(const Cancel &cancel) & {
        // C accepts NULL to remove the token, but a moved-from token is a mistake.
        if (cancel.get() == nullptr) throw Error(Status::null, "`cancel` was moved from");
        return set(hart_request_set_cancel(get(), cancel.get()));
    }
    [[nodiscard]] Request cancel_token(const Cancel &cancel) && { return moved(this->cancel_token(cancel)); }

    /// Removes the token.
    Request &without_cancel_token() & { return set(hart_request_set_cancel(get(), nullptr)); }
    [[nodiscard]] Request without_cancel_token() && { return moved(this->without_cancel_token()); }

    /// Returns the prompts that are set, or come from the context.
    [[nodiscard]] std::vector<std::string> prompts() const {
        std::vector<std::string> all;
        for (std::size_t i = 0; i < hart_request_get_prompt_count(get()); ++i) {
            const char *prompt = nullptr;
            detail::check(hart_request_get_prompt(get(), i, &prompt));
            all.emplace_back(prompt);
        }
        return all;
    }
    /// Returns the number of images of each prompt, if it is set.
    [[nodiscard]] std::optional<std::uint32_t> images_per_prompt() const {
        return detail::setting(hart_request_get_images_per_prompt, get());
    }
    /// Returns the seed, if it is set.
    [[nodiscard]] std::optional<std::uint64_t> seed() const { return detail::setting(hart_request_get_seed, get()); }
    /// Returns the strength of guidance, if it is set.
    [[nodiscard]] std::optional<double> guidance() const { return detail::setting(hart_request_get_guidance, get()); }
    /// Returns whether there is smoothing, if it is set.
    [[nodiscard]] std::optional<bool> smoothing() const { return detail::flag(hart_request_get_smoothing, get()); }
    /// Returns how many codes a token is sampled from, if it is set.
    [[nodiscard]] std::optional<std::uint32_t> top_k() const { return detail::setting(hart_request_get_top_k, get()); }
    /// Returns the probability of top-p sampling, if it is set.
    [[nodiscard]] std::optional<double> top_p() const { return detail::setting(hart_request_get_top_p, get()); }
    /// Returns the steps of the residual diffusion, if they are set.
    [[nodiscard]] std::optional<std::string> steps() const { return detail::text_setting(hart_request_get_steps, get()); }
    /// Returns the marks that the files of the images get, if they are set.
    [[nodiscard]] std::optional<std::string> marks() const { return detail::text_setting(hart_request_get_marks, get()); }
    /// Returns the shares of tokens that the last scales leave out, if they are set.
    [[nodiscard]] std::optional<std::string> prune() const { return detail::text_setting(hart_request_get_prune, get()); }
    /// Returns the text before each prompt, "" for none; nullopt for the model's own text.
    [[nodiscard]] std::optional<std::string> system_prompt() const {
        return detail::text_setting(hart_request_get_system_prompt, get());
    }
    /// Returns the context, if it is set.
    [[nodiscard]] std::optional<Context> context() const {
        auto handle = detail::make<hart_context>(hart_request_get_context, get());
        return handle ? std::optional<Context>(Context(std::move(handle))) : std::nullopt;
    }
    /// Returns what inpaint() has set, if it was the last to set an image.
    [[nodiscard]] std::optional<Inpainting> inpaint() const {
        hart_image *image = nullptr, *mask = nullptr;
        std::uint32_t kept_scales = 0;
        detail::check(hart_request_get_inpaint(get(), &image, &mask, &kept_scales));
        detail::Handle<hart_image> first(image), second(mask);
        if (!first) return std::nullopt;
        return Inpainting{Image(std::move(first)), Image(std::move(second)), kept_scales};
    }
    /// Returns what outpaint() has set, if it was the last to set an image.
    [[nodiscard]] std::optional<Outpainting> outpaint() const {
        hart_image *image = nullptr;
        std::uint32_t left = 0, top = 0;
        detail::check(hart_request_get_outpaint(get(), &image, &left, &top));
        detail::Handle<hart_image> handle(image);
        if (!handle) return std::nullopt;
        return Outpainting{Image(std::move(handle)), left, top};
    }
    /// Returns what vary() has set, if it was the last to set an image.
    [[nodiscard]] std::optional<Variation> vary() const {
        hart_image *image = nullptr;
        std::uint32_t kept_scales = 0;
        detail::check(hart_request_get_variation(get(), &image, &kept_scales));
        detail::Handle<hart_image> handle(image);
        if (!handle) return std::nullopt;
        return Variation{Image(std::move(handle)), kept_scales};
    }
    /// Returns what inpaint() and outpaint() keep, if it is set.
    [[nodiscard]] std::optional<Keep> keep() const {
        const auto keep = detail::setting(hart_request_get_keep, get());
        return keep ? std::optional<Keep>(static_cast<Keep>(*keep)) : std::nullopt;
    }
    /// Returns a copy of the observer; an empty function if none is set.
    [[nodiscard]] Observer observer() const { return state_ ? state_->observer : Observer(); }
    /// Returns another object of the token, if one is set.
    [[nodiscard]] std::optional<Cancel> cancel_token() const { return Cancel::of(hart_request_get_cancel, get()); }

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_request *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    explicit Request(detail::Handle<hart_request> handle) noexcept : handle_(std::move(handle)) {}

    Request &set(hart_status status) {
        detail::check(status);
        return *this;
    }

    /// Returns the C image. C accepts NULL to remove the image, but a moved-from image is a mistake.
    [[nodiscard]] static const hart_image *required(const Image &image) {
        if (image.get() == nullptr) throw Error(Status::null, "`image` was moved from");
        return image.get();
    }

    [[nodiscard]] static Request moved(Request &request) noexcept { return std::move(request); }

    Request &watch(Observer observer) {
        state_ = detail::ObserverState::set(hart_request_set_observer, get(), std::move(observer));
        return *this;
    }

    detail::Handle<hart_request> handle_;
    std::shared_ptr<detail::ObserverState> state_;
};

/* ---- Results --------------------------------------------------------------- */

/// Time that a run spent in each stage, in seconds.
struct Timings {
    /// The text encoder: prompt to context.
    double text = 0.0;
    /// The transformer.
    double transformer = 0.0;
    /// Sampling: logits to codes, codes to the latent.
    double sampling = 0.0;
    /// The residual diffusion.
    double residual = 0.0;
    /// The visual decoder: latent to pixels.
    double decode = 0.0;
    /// The whole run.
    double total = 0.0;
};

/// A prompt that was cut because it has more tokens than the model reads.
struct Truncation {
    /// Index of the prompt in the request, from 0; nullopt for the system prompt.
    std::optional<std::size_t> prompt;
    /// Number of tokens of the whole prompt.
    std::uint32_t tokens = 0;
    /// Number of tokens that were read.
    std::uint32_t kept = 0;
    /// The part of the prompt that was not read.
    std::string cut;
};

/// Result of a run.
class Result {
public:
    /// Returns another object of the same result.
    [[nodiscard]] Result share() const { return Result(detail::make<hart_result>(hart_result_share, get())); }

    /// Returns the number of finished images.
    [[nodiscard]] std::size_t count() const noexcept { return hart_result_count(get()); }

    /// Returns image `index`, counted from 0: all images of the first prompt, then all of the second, and so on. It may
    /// outlive the result.
    [[nodiscard]] Image image(std::size_t index) const { return Image(detail::make<hart_image>(hart_result_image, get(), index)); }

    /// Returns all images.
    [[nodiscard]] std::vector<Image> images() const {
        std::vector<Image> all;
        all.reserve(count());
        for (std::size_t i = 0; i < count(); ++i) all.push_back(image(i));
        return all;
    }

    /// Returns the timings of the run. They are 0 after a cancelled run.
    [[nodiscard]] Timings timings() const {
        auto t = detail::sized<hart_timings>();
        detail::check(hart_result_timings(get(), &t));
        return {t.text, t.transformer, t.sampling, t.residual, t.decode, t.total};
    }

    /// Returns the prompts that were cut, including the system prompt.
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

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_result *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    explicit Result(detail::Handle<hart_result> handle) noexcept : handle_(std::move(handle)) {}

    detail::Handle<hart_result> handle_;
};

/// Thrown by Model::generate, Model::encode and Model::open if the work was cancelled. Holds the images that were finished
/// before.
class Cancelled : public Error {
public:
    /// Creates the exception, for Model and tests.
    Cancelled(const std::string &message, Result result)
        : Error(Status::cancelled, message), result_(std::make_shared<const Result>(std::move(result))) {}

    /// Returns the finished images. They may outlive the exception.
    [[nodiscard]] std::vector<Image> images() const { return result_->images(); }
    /// Returns the result of the run until it was cancelled; an empty one from Model::encode and Model::open. Valid as long
    /// as the exception.
    [[nodiscard]] const Result &result() const noexcept { return *result_; }

private:
    // Shared, because exceptions must be copyable.
    std::shared_ptr<const Result> result_;
};

/* ---- Models ---------------------------------------------------------------- */

/// Options for opening a model. Every option has a default. Each setter has two overloads, and a function that returns what
/// was set, like those of Request.
class Options {
public:
    /// Creates options with the default values.
    Options() : handle_(detail::make<hart_options>(hart_options_new)) {}

    /// Returns an independent copy, with the same token and a copy of the observer.
    [[nodiscard]] Options clone() const {
        Options copy(detail::make<hart_options>(hart_options_clone, get()));
        if (state_) copy.watch(state_->observer);
        return copy;
    }

    /// Sets the device: "auto" (default), "cpu", or another name from devices().
    Options &device(const Text &device) & { return set(hart_options_set_device(get(), device.c_str())); }
    [[nodiscard]] Options device(const Text &device) && { return moved(this->device(device)); }

    /// Sets the numeric precision of the computation: "auto" (default), "f32", "f16" (GPU only), "bf16" or "int8" (CPU
    /// only).
    Options &precision(const Text &precision) & { return set(hart_options_set_precision(get(), precision.c_str())); }
    [[nodiscard]] Options precision(const Text &precision) && { return moved(this->precision(precision)); }

    /// Sets the folder of the text model. The default is `text` in the model's folder, or `Qwen2-VL-1.5B-Instruct`
    /// there or next to it.
    Options &text_model(const Path &path) & { return set(hart_options_set_text_model(get(), path.c_str())); }
    [[nodiscard]] Options text_model(const Path &path) && { return moved(this->text_model(path)); }

    /// Sets which weights are loaded: "auto" (default: EMA weights if present, otherwise the plain ones), "ema" or
    /// "plain".
    Options &weights(const Text &weights) & { return set(hart_options_set_weights(get(), weights.c_str())); }
    [[nodiscard]] Options weights(const Text &weights) && { return moved(this->weights(weights)); }

    /// Sets whether safetensors files are memory-mapped (default) or read into memory. Mapped files must not change
    /// while the model is open.
    Options &memory_map(bool memory_map) & { return set(hart_options_set_memory_map(get(), memory_map ? 1 : 0)); }
    [[nodiscard]] Options memory_map(bool memory_map) && { return moved(this->memory_map(memory_map)); }

    /// Sets whether unused tensors are an error (default) or ignored.
    Options &strict(bool strict) & { return set(hart_options_set_strict(get(), strict ? 1 : 0)); }
    [[nodiscard]] Options strict(bool strict) && { return moved(this->strict(strict)); }

    /// Sets the number of threads that belong to this model, 1 to 1024. With 0 (default), all models of the program
    /// share one thread pool with a thread per core. The number does not change the image.
    Options &threads(std::uint32_t threads) & { return set(hart_options_set_threads(get(), threads)); }
    [[nodiscard]] Options threads(std::uint32_t threads) && { return moved(this->threads(threads)); }

    /// Sets how many images are generated at once, each on its share of the threads: the images of a request, and those of
    /// runs on several threads. At least 1, and at most the number of threads, or opening the model throws
    /// Status::request. With 0 (default), hart chooses it: 1 for a large model and on a GPU, more for a small one.
    /// Model::parallel returns it. The number does not change the images.
    Options &parallel(std::uint32_t parallel) & { return set(hart_options_set_parallel(get(), parallel)); }
    [[nodiscard]] Options parallel(std::uint32_t parallel) && { return moved(this->parallel(parallel)); }

    /// Sets a limit in bytes for the estimated memory; 0 (default) is no limit. Opening the model or generating with it
    /// throws Status::memory before any work if the estimate is higher. On the CPU, if an image would not fit
    /// otherwise, the decoder uses less memory and takes longer.
    Options &max_memory(std::uint64_t bytes) & { return set(hart_options_set_max_memory(get(), bytes)); }
    [[nodiscard]] Options max_memory(std::uint64_t bytes) && { return moved(this->max_memory(bytes)); }

    /// Sets whether the text model's weights stay in memory after prompts are encoded. Off by default.
    Options &keep_text_model(bool keep) & { return set(hart_options_set_keep_text_model(get(), keep ? 1 : 0)); }
    [[nodiscard]] Options keep_text_model(bool keep) && { return moved(this->keep_text_model(keep)); }

    /// Sets the observer of opening a model, like Request::observer. Its events have the step Step::tensor. The model does
    /// not keep it.
    template <class F, detail::IsObserver<F> = 0>
    Options &observer(F &&observer) & {
        return watch(detail::observer(std::forward<F>(observer)));
    }
    template <class F, detail::IsObserver<F> = 0>
    [[nodiscard]] Options observer(F &&observer) && {
        return moved(this->observer(std::forward<F>(observer)));
    }

    /// Removes the observer.
    Options &without_observer() & { return watch(nullptr); }
    [[nodiscard]] Options without_observer() && { return moved(this->without_observer()); }

    /// Sets the token that cancels opening a model. It may be destroyed before the options. Runs of the model do not use it.
    Options &cancel_token(const Cancel &cancel) & {
        // C accepts NULL to remove the token, but a moved-from token is a mistake.
        if (cancel.get() == nullptr) throw Error(Status::null, "`cancel` was moved from");
        return set(hart_options_set_cancel(get(), cancel.get()));
    }
    [[nodiscard]] Options cancel_token(const Cancel &cancel) && { return moved(this->cancel_token(cancel)); }

    /// Removes the token.
    Options &without_cancel_token() & { return set(hart_options_set_cancel(get(), nullptr)); }
    [[nodiscard]] Options without_cancel_token() && { return moved(this->without_cancel_token()); }

    /// Returns the device, if it is set.
    [[nodiscard]] std::optional<std::string> device() const { return detail::text_setting(hart_options_get_device, get()); }
    /// Returns the precision, if it is set.
    [[nodiscard]] std::optional<std::string> precision() const {
        return detail::text_setting(hart_options_get_precision, get());
    }
    /// Returns the folder of the text model in UTF-8, if it is set.
    [[nodiscard]] std::optional<std::string> text_model() const {
        return detail::text_setting(hart_options_get_text_model, get());
    }
    /// Returns which weights are loaded, if it is set.
    [[nodiscard]] std::optional<std::string> weights() const { return detail::text_setting(hart_options_get_weights, get()); }
    /// Returns whether files are memory-mapped, if it is set.
    [[nodiscard]] std::optional<bool> memory_map() const { return detail::flag(hart_options_get_memory_map, get()); }
    /// Returns whether unused tensors are an error, if it is set.
    [[nodiscard]] std::optional<bool> strict() const { return detail::flag(hart_options_get_strict, get()); }
    /// Returns the number of threads, if it is set.
    [[nodiscard]] std::optional<std::uint32_t> threads() const { return detail::setting(hart_options_get_threads, get()); }
    /// Returns how many images are generated at once, if it is set.
    [[nodiscard]] std::optional<std::uint32_t> parallel() const { return detail::setting(hart_options_get_parallel, get()); }
    /// Returns the limit for the estimated memory in bytes, if it is set.
    [[nodiscard]] std::optional<std::uint64_t> max_memory() const {
        return detail::setting(hart_options_get_max_memory, get());
    }
    /// Returns whether the text model's weights stay in memory, if it is set.
    [[nodiscard]] std::optional<bool> keep_text_model() const {
        return detail::flag(hart_options_get_keep_text_model, get());
    }
    /// Returns a copy of the observer; an empty function if none is set.
    [[nodiscard]] Observer observer() const { return state_ ? state_->observer : Observer(); }
    /// Returns another object of the token, if one is set.
    [[nodiscard]] std::optional<Cancel> cancel_token() const { return Cancel::of(hart_options_get_cancel, get()); }

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_options *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    explicit Options(detail::Handle<hart_options> handle) noexcept : handle_(std::move(handle)) {}

    Options &set(hart_status status) {
        detail::check(status);
        return *this;
    }

    [[nodiscard]] static Options moved(Options &options) noexcept { return std::move(options); }

    Options &watch(Observer observer) {
        state_ = detail::ObserverState::set(hart_options_set_observer, get(), std::move(observer));
        return *this;
    }

    detail::Handle<hart_options> handle_;
    std::shared_ptr<detail::ObserverState> state_;
};

/// Callback that fills `buffer` with the bytes of a file at `offset`. Returns false on failure. Files::add_reader
/// rethrows its exceptions.
using Reader = std::function<bool(std::uint64_t offset, span<std::uint8_t> buffer)>;

/// Files of a model in memory. Each has the path that it would have inside the model's folder, such as
/// "llm/config.json".
class Files {
public:
    /// Creates an empty set of files.
    Files() : handle_(detail::make<hart_files>(hart_files_new)) {}

    /// Adds a file with the `size` bytes at `data`, which are copied.
    Files &add(const Text &name, const void *data, std::size_t size) {
        detail::check(hart_files_add(get(), name.c_str(), static_cast<const std::uint8_t *>(data), size));
        return *this;
    }

    /// Adds a file with the `size` bytes at `data`, which are not copied. They must stay valid and unchanged until `release` is
    /// called: when the files and all models that were opened from them are destroyed, or if the call throws. It may be empty,
    /// for data that outlives them; it must not throw. Weights are read in place if `data` is aligned to 8 bytes.
    Files &add_borrowed(const Text &name, const void *data, std::size_t size, std::function<void()> release = nullptr) {
        using Release = std::function<void()>;
        const auto *const bytes = static_cast<const std::uint8_t *>(data);
        if (!release) {
            detail::check(hart_files_add_borrowed(get(), name.c_str(), bytes, size, nullptr, nullptr));
            return *this;
        }
        const auto call = [](void *user_data) noexcept {
            (*static_cast<Release *>(user_data))();
            detail::destroy<Release>(user_data);
        };
        detail::check(hart_files_add_borrowed(get(), name.c_str(), bytes, size, new Release(std::move(release)), call));
        return *this;
    }

    /// Adds a file of `size` bytes, read through `reader` before the call returns.
    Files &add_reader(const Text &name, std::uint64_t size, const Reader &reader) {
        if (!reader) throw Error(Status::null, "`reader` is empty");
        Reading reading{reader, nullptr};
        const hart_status status = hart_files_add_reader(get(), name.c_str(), size, Reading::read, &reading, nullptr);
        if (reading.thrown) std::rethrow_exception(reading.thrown);
        detail::check(status);
        return *this;
    }

    /// Returns the C object, which this object still owns.
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

/// An image encoded as tokens of a model: the codes of every scale, and the residual that the codes do not represent.
/// Keeps the model's weights in memory.
class Tokens {
public:
    /// Returns another object of the same tokens.
    [[nodiscard]] Tokens share() const { return Tokens(detail::make<hart_tokens>(hart_tokens_share, get())); }

    /// Returns the number of scales.
    [[nodiscard]] std::size_t scales() const noexcept { return hart_tokens_scales(get()); }

    /// Returns the codes of one scale, counted from 0, coarse to fine: side * side codes, row by row. Valid as long as
    /// the tokens.
    [[nodiscard]] span<const std::uint32_t> codes(std::size_t scale) const & {
        const std::uint32_t *data = nullptr;
        std::size_t count = 0;
        detail::check(hart_tokens_codes(get(), scale, &data, &count));
        return {data, count};
    }
    /// The codes of a temporary would dangle: keep the tokens.
    span<const std::uint32_t> codes(std::size_t scale) const && = delete;

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_tokens *get() const noexcept { return handle_.get(); }

private:
    friend class Model;

    explicit Tokens(detail::Handle<hart_tokens> handle) noexcept : handle_(std::move(handle)) {}

    detail::Handle<hart_tokens> handle_;
};

/// Properties of a model.
struct ModelInfo {
    /// Width of its images in pixels.
    std::uint32_t width = 0;
    /// Height of its images in pixels.
    std::uint32_t height = 0;
    /// Number of scales of an image.
    std::uint32_t scales = 0;
    /// Maximum number of tokens of a prompt. Longer prompts are cut.
    std::uint32_t context_tokens = 0;
    /// Number of codes in its codebook.
    std::uint32_t codes = 0;
    /// Number of parameters, including the text encoder and the visual tokenizer.
    std::uint64_t parameters = 0;
    /// Device, such as "cpu" or "cuda:0".
    std::string device;
    /// Numeric precision, such as "f32".
    std::string precision;
    /// Fingerprint of the model: 64 hexadecimal digits, the same for a folder and for its files in memory.
    std::string fingerprint;
};

/// Estimated memory in bytes. Every further run at the same time adds `peak - weights`.
struct Memory {
    /// Size of the model.
    std::uint64_t weights = 0;
    /// Size of the model and a run at its peak.
    std::uint64_t peak = 0;
};

/// An open model. Its weights never change, so any number of threads may use it at once, each with its own request.
class Model {
public:
    /// Opens the model in a folder, which holds `llm` and `tokenizer`.
    [[nodiscard]] static Model open(const Path &path) { return open(path, nullptr, nullptr); }
    /// Opens the model in a folder, which holds `llm` and `tokenizer`. Throws Cancelled if the options' observer or token has
    /// cancelled opening. Rethrows exceptions of the observer.
    [[nodiscard]] static Model open(const Path &path, const Options &options) {
        return open(path, options_of(options), options.state_);
    }

    /// Opens a model from files in memory. They may be destroyed afterwards.
    [[nodiscard]] static Model from_files(const Files &files) { return from_files(files, nullptr, nullptr); }
    /// Opens a model from files in memory, like open(). They may be destroyed afterwards.
    [[nodiscard]] static Model from_files(const Files &files, const Options &options) {
        return from_files(files, options_of(options), options.state_);
    }

    /// Returns another handle of the same model. The handles share the weights; destroying the last one releases them.
    [[nodiscard]] Model share() const { return Model(detail::make<hart_model>(hart_model_share, get())); }

    /// Returns the properties of the model.
    [[nodiscard]] ModelInfo info() const {
        auto i = detail::sized<hart_model_info>();
        detail::check(hart_model_describe(get(), &i));
        return {i.width, i.height, i.scales, i.context_tokens, i.codes, i.parameters, i.device, i.precision, i.fingerprint};
    }

    /// Estimates the memory of a run that generates one image.
    [[nodiscard]] Memory memory() const { return memory(nullptr); }
    /// Estimates the memory of a run of the request.
    [[nodiscard]] Memory memory(const Request &request) const { return memory(request_of(request)); }

    /// Returns the maximum number of images that the model generates at once: the images of a request, and those of runs on
    /// several threads.
    [[nodiscard]] std::uint32_t parallel() const {
        std::uint32_t parallel = 0;
        detail::check(hart_model_parallel(get(), &parallel));
        return parallel;
    }

    /// Compiles the kernels of a GPU by generating an image and discarding it, so that the first real image takes no
    /// longer than the others. Does nothing on the CPU.
    void warm_up() const { detail::check(hart_model_warm_up(get())); }

    /// Generates the images of a request and returns when all are finished. Throws Cancelled if the run was cancelled.
    /// Rethrows exceptions of the observer.
    [[nodiscard]] Result generate(const Request &request) const {
        // Held here, because the observer may destroy its own request.
        const std::shared_ptr<detail::ObserverState> state = request.state_;
        hart_result *created = nullptr;
        const hart_status status = hart_generate(get(), request.get(), &created);
        Result result{detail::Handle<hart_result>(created)};
        rethrow(status, state);
        if (status == HART_CANCELLED) throw Cancelled(hart_last_error(), std::move(result));
        detail::check(status);
        return result;
    }

    /// Encodes the prompts of a request with its system prompt, for Request::context. Of its other settings, only the
    /// observer and the cancel token have an effect. Throws Cancelled if the run was cancelled. Rethrows exceptions of
    /// the observer.
    [[nodiscard]] Context encode(const Request &request) const {
        const std::shared_ptr<detail::ObserverState> state = request.state_;
        hart_context *created = nullptr;
        const hart_status status = hart_encode(get(), request.get(), &created);
        Context context{detail::Handle<hart_context>(created)};
        rethrow(status, state);
        if (status == HART_CANCELLED) throw Cancelled(hart_last_error(), Result(detail::Handle<hart_result>()));
        detail::check(status);
        return context;
    }

    /// Encodes an image as tokens. It must have the width and height of the model.
    [[nodiscard]] Tokens tokenize(const Image &image) const {
        return Tokens(detail::make<hart_tokens>(hart_model_tokenize, get(), image.get()));
    }

    /// Decodes tokens of this model to an image, with the residual or from the codes alone. With the residual, the
    /// image is the best reconstruction of the autoencoder.
    [[nodiscard]] Image reconstruct(const Tokens &tokens, bool with_residual = true) const {
        return Image(detail::make<hart_image>(hart_model_reconstruct, get(), tokens.get(), with_residual ? 1 : 0));
    }

    /// Returns the C object, which this object still owns.
    [[nodiscard]] hart_model *get() const noexcept { return handle_.get(); }

private:
    explicit Model(detail::Handle<hart_model> handle) noexcept : handle_(std::move(handle)) {}

    /// Rethrows the exception of a run's observer.
    static void rethrow(hart_status status, const std::shared_ptr<detail::ObserverState> &state) {
        // Status::state: another run uses the request, so the exception belongs to that run.
        if (status != HART_ERR_STATE) detail::ObserverState::rethrow(state);
    }

    /// The state is a copy, because the observer may destroy its own options.
    using State = std::shared_ptr<detail::ObserverState>;

    [[nodiscard]] static Model open(const Path &path, const hart_options *options, const State state) {
        hart_model *model = nullptr;
        return opened(hart_model_open(path.c_str(), options, HART_ABI_VERSION, &model), model, state);
    }

    [[nodiscard]] static Model from_files(const Files &files, const hart_options *options, const State state) {
        hart_model *model = nullptr;
        return opened(hart_model_open_files(files.get(), options, HART_ABI_VERSION, &model), model, state);
    }

    [[nodiscard]] static Model opened(hart_status status, hart_model *&model, const State &state) {
        Model opened{detail::Handle<hart_model>(model)};
        detail::ObserverState::rethrow(state);
        if (status == HART_CANCELLED) throw Cancelled(hart_last_error(), Result(detail::Handle<hart_result>()));
        detail::check(status);
        return opened;
    }

    [[nodiscard]] Memory memory(const hart_request *request) const {
        Memory memory;
        detail::check(hart_model_memory(get(), request, &memory.weights, &memory.peak));
        return memory;
    }

    // C accepts NULL for the defaults, but a moved-from object is a mistake.
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
