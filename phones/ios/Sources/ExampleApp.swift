import PhotosUI
import SwiftUI

/// Chooses a photo and shows what it is.
@main
struct ExampleApp: App {
    var body: some Scene {
        WindowGroup { ChooseView() }
    }
}

struct ChooseView: View {
    @State private var chosen: PhotosPickerItem?
    @State private var answer = ""

    var body: some View {
        VStack(spacing: 24) {
            PhotosPicker("Choose a photo", selection: $chosen, matching: .images)
            Text(answer)
        }
        .padding()
        .task(id: chosen) { await show() }
    }

    private func show() async {
        guard let chosen else { return }
        do {
            guard let data = try await chosen.loadTransferable(type: Data.self), let photo = UIImage(data: data) else {
                answer = "This photo cannot be read."
                return
            }
            // Not on the thread of the screen: opening the model takes a moment.
            let found = try await Task.detached { try Classifier().classify(photo) }.value
            answer = found.map { String(format: "%@ %.1f %%", $0.0, 100 * $0.1) }.joined(separator: "\n")
        } catch {
            answer = "This photo cannot be classified: \(error.localizedDescription)"
        }
    }
}
