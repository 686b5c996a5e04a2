// A stream of images through one detector, as reconstruction software has it: several threads, a
// deadline, and results by value.
//
//     detect_stream DETECTOR.onnx IMAGE.f32 [COUNT] [DEADLINE_MS]
//
// IMAGE.f32 holds one image as the detector takes it: 32-bit floats in [0, 1], channel after
// channel, row after row. Here it is sent COUNT times, each time with an id of its own.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "berdiff_detector.h"

namespace {

struct Found {
    std::vector<float> anomaly_map;
    double score = 0;
};

class Detector {
public:
    explicit Detector(const std::string &path, int threads)
        : handle_(berdiff_open(path.c_str(), threads), &berdiff_free) {
        if (!handle_) throw std::runtime_error(berdiff_last_error());
        if (berdiff_warm_up(handle_.get(), 1)) throw std::runtime_error(berdiff_last_error());
    }

    berdiff_size size() const { return berdiff_input_size(handle_.get()); }

    Found detect(const std::vector<float> &image, std::uint64_t id, std::uint64_t seed) const {
        const auto [channels, height, width] = size();
        if (image.size() != channels * height * width) throw std::runtime_error("wrong image size");
        Found found{std::vector<float>(height * width)};
        auto settings = berdiff_defaults();
        settings.seed = seed;
        const berdiff_results results{found.anomaly_map.data(), nullptr, nullptr, &found.score};
        if (berdiff_detect(handle_.get(), image.data(), &id, 1, &settings, results))
            throw std::runtime_error(berdiff_last_error());
        return found;
    }

    void cancel() const { berdiff_cancel(handle_.get()); }

private:
    std::unique_ptr<berdiff_detector, decltype(&berdiff_free)> handle_;
};

// Ends what the detector computes if that takes too long; destroyed before, it does nothing.
class Deadline {
public:
    Deadline(const Detector &detector, std::chrono::milliseconds limit)
        : thread_([this, &detector, limit] {
              std::unique_lock lock(mutex_);
              if (done_.wait_for(lock, limit, [this] { return over_; })) return;
              expired_ = true;  // before, so that nobody begins another call after
              detector.cancel();
          }) {}

    ~Deadline() {
        {
            const std::lock_guard lock(mutex_);
            over_ = true;
        }
        done_.notify_one();
        thread_.join();
    }

    bool expired() const { return expired_; }

private:
    std::atomic<bool> expired_{false};
    std::mutex mutex_;
    std::condition_variable done_;
    bool over_ = false;
    std::thread thread_;
};

std::vector<float> read(const std::string &path, berdiff_size size) {
    std::vector<float> image(size.channels * size.height * size.width);
    std::ifstream file(path, std::ios::binary);
    if (!file.read(reinterpret_cast<char *>(image.data()),
                   static_cast<std::streamsize>(image.size() * sizeof(float))))
        throw std::runtime_error(path + " does not hold one image of the detector's size");
    return image;
}

}  // namespace

int main(int count, char **words) try {
    if (count < 3) {
        std::cerr << "usage: " << words[0] << " DETECTOR.onnx IMAGE.f32 [COUNT] [DEADLINE_MS]\n";
        return 2;
    }
    const int images = count > 3 ? std::atoi(words[3]) : 8;
    const int limit = count > 4 ? std::atoi(words[4]) : 600000;
    const Detector detector(words[1], 1);
    const auto image = read(words[2], detector.size());

    std::vector<Found> found(static_cast<std::size_t>(images));
    std::string trouble;
    std::mutex lock;
    {
        const Deadline deadline(detector, std::chrono::milliseconds(limit));
        std::vector<std::thread> workers;
        for (int worker = 0; worker < 4; ++worker)
            workers.emplace_back([&, worker] {
                try {
                    for (int number = worker; number < images; number += 4) {
                        if (deadline.expired()) throw std::runtime_error("terminated: too late");
                        found[static_cast<std::size_t>(number)] =
                            detector.detect(image, static_cast<std::uint64_t>(number), 0);
                    }
                } catch (const std::exception &error) {
                    const std::lock_guard guard(lock);
                    trouble = error.what();
                }
            });
        for (auto &worker : workers) worker.join();
    }
    if (!trouble.empty()) throw std::runtime_error(trouble);
    std::cout << std::setprecision(9);
    for (const auto &one : found) std::cout << "score " << one.score << "\n";
    return 0;
} catch (const std::exception &error) {
    std::cerr << error.what() << "\n";
    return 1;
}
