import MediaPipeTasksVision
import UIKit

final class Classifier {
    private let task: ImageClassifier

    init() throws {
        let options = ImageClassifierOptions()
        options.baseOptions.modelAssetPath = Bundle.main.path(forResource: "model", ofType: "tflite")!
        options.maxResults = 3
        task = try ImageClassifier(options: options)
    }

    /// The likeliest classes of a photo with their probabilities.
    func classify(_ photo: UIImage) throws -> [(String, Float)] {
        let result = try task.classify(image: MPImage(uiImage: photo))
        let head = result.classificationResult.classifications.first { $0.headName == "probabilities" }!
        return head.categories.map { ($0.categoryName ?? "", $0.score) }
    }
}
